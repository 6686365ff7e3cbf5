//! Every configuration of a Collector that is shipped is one that the Collector takes.

use std::path::Path;
use std::process::Command;

use super::network::shipped;
use super::programs::collector;

/// Each way in which the shipped files are put together, as their comments say.
pub(crate) const WAYS: &[&[&str]] = &[
    &["otel-collector.yaml"],
    &["otel-collector.yaml", "deploy/collector/kubernetes.yaml"],
    &["otel-collector.yaml", "deploy/collector/gateway.yaml"],
    &["otel-collector.yaml", "deploy/collector/kubernetes.yaml", "deploy/collector/gateway.yaml"],
    &["deploy/collector/agent.yaml"],
];

fn validate(program: &Path, files: &[&Path]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg("validate").env("STORAGE_DIRECTORY", std::env::temp_dir());
    let output = command
        .args(files.iter().map(|file| format!("--config={}", file.display())))
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(messages) } else { Err(messages) }
}

#[test]
fn the_collector_takes_every_shipped_configuration() {
    let Some(program) = collector("the_collector_takes_every_shipped_configuration") else {
        return;
    };
    for way in WAYS {
        let files: Vec<_> = way.iter().map(|file| shipped(file)).collect();
        let files: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
        validate(&program, &files).unwrap_or_else(|error| panic!("{way:?}: {error}"));
    }
    // And it is one that refuses.
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.yaml");
    let text = std::fs::read_to_string(shipped("otel-collector.yaml")).unwrap();
    std::fs::write(&broken, text.replace("virtual_node_peer_attributes", "virtual_node_peers"))
        .unwrap();
    let error = validate(&program, &[&broken]).unwrap_err();
    assert!(error.contains("virtual_node_peers"), "{error}");
}

/// Each shipped file is in one of the ways above.
#[test]
fn no_shipped_configuration_is_left_out() {
    let mut shipped_files: Vec<String> = std::fs::read_dir(shipped("deploy/collector"))
        .unwrap()
        .map(|entry| format!("deploy/collector/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|file| file.ends_with(".yaml"))
        .collect();
    shipped_files.push("otel-collector.yaml".into());
    for file in shipped_files {
        assert!(WAYS.iter().any(|way| way.contains(&file.as_str())), "{file} is in no way");
    }
}
