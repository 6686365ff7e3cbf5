//! Builds the BPF objects, and checks that the committed ones are what the source gives.
//!
//! Users must not need a BPF toolchain, so the objects are committed. The build is reproducible: paths
//! are remapped, and the versions of what built the objects are recorded beside them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// Binaries of bpf-probes, and the files they are committed as.
const OBJECTS: [(&str, &str); 3] =
    [("flowend", "flowend.bpf.o"), ("noop", "noop.bpf.o"), ("rewrite", "rewrite.bpf.o")];

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const VERSIONS_FILE: &str = "toolchain.toml";

const NEEDS: &str = "\
building the BPF objects needs, once (this command installs nothing by itself):
  rustup component add rust-src
  apt-get install llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev
  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked \\
      --no-default-features --features llvm-22
A bpf-linker elsewhere than on the PATH is named by the variable BPF_LINKER.";

/// The versions that an object's bytes depend on.
#[derive(Debug, PartialEq, Eq)]
struct Toolchain {
    rustc: String,
    bpf_linker: String,
    llvm: String,
}

/// Rebuilds the objects and writes them, with the versions, into bpf-probes/.
pub(crate) fn rebuild() -> anyhow::Result<()> {
    let linker = find_linker()?;
    let toolchain = Toolchain::found(&linker)?;
    let built = build(&linker)?;
    let folder = probes();
    for ((_, file), bytes) in OBJECTS.iter().zip(&built) {
        std::fs::write(folder.join(file), bytes)?;
        println!("bpf-probes/{file}: {} bytes", bytes.len());
    }
    std::fs::write(folder.join(VERSIONS_FILE), toolchain.to_toml())?;
    println!("bpf-probes/{VERSIONS_FILE}: {toolchain:?}");
    Ok(())
}

/// Fails unless a rebuild gives the committed bytes.
pub(crate) fn check() -> anyhow::Result<()> {
    let linker = find_linker()?;
    let toolchain = Toolchain::found(&linker)?;
    let folder = probes();
    let text = std::fs::read_to_string(folder.join(VERSIONS_FILE))
        .with_context(|| format!("bpf-probes/{VERSIONS_FILE}: run `cargo xtask bpf` and commit"))?;
    let recorded = Toolchain::from_toml(&text)?;
    ensure!(
        toolchain == recorded,
        "the committed BPF objects were built by {recorded:?}, and here is {toolchain:?}: \
         rebuild and commit (`cargo xtask bpf`), or use the recorded versions"
    );
    let built = build(&linker)?;
    for ((_, file), bytes) in OBJECTS.iter().zip(&built) {
        let committed =
            std::fs::read(folder.join(file)).with_context(|| format!("bpf-probes/{file}"))?;
        if committed != *bytes {
            let at = committed.iter().zip(bytes).position(|(a, b)| a != b);
            let place =
                at.map_or_else(|| "the length differs".into(), |at| format!("first at byte {at}"));
            bail!(
                "bpf-probes/{file} is not what the source gives ({} bytes committed, {} rebuilt, {place}): \
                 rebuild and commit (`cargo xtask bpf`)",
                committed.len(),
                bytes.len(),
            );
        }
        println!("bpf-probes/{file}: the rebuild gives the committed {} bytes", bytes.len());
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_owned)
}

fn probes() -> PathBuf {
    root().join("bpf-probes")
}

fn build(linker: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
    ensure!(
        sysroot.join("lib/rustlib/src/rust/library/core").is_dir(),
        "the standard library's source (rust-src) is missing\n{NEEDS}"
    );
    let cargo_home = home("CARGO_HOME", ".cargo")?;
    let flags = [
        format!("-Clinker={}", linker.display()),
        format!("--remap-path-prefix={}=/sysroot", sysroot.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
        format!("--remap-path-prefix={}=/flowend", root().display()),
    ];
    let target_dir = root().join("target/bpf");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(probes())
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        // The BPF target has no prebuilt core; stable can build it when told so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET");
    // Profiles are the workspace's: whoever builds flowend in another way gets the same programs.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PROFILE_")) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().context("cargo")?;
    ensure!(status.success(), "cargo build of bpf-probes failed\n{NEEDS}");
    OBJECTS
        .iter()
        .map(|(name, _)| {
            let file = target_dir.join(TARGET).join("release").join(name);
            let object = std::fs::read(&file).with_context(|| file.display().to_string())?;
            // Such a name holds a hash of the folder that the source lies in.
            ensure!(
                !object.windows(4).any(|w| w == b"\0_RN" || w == b"\0_RI"),
                "{name}: a function was not inlined, and its mangled name makes the object depend on the \
                 folder it is built in: mark it #[inline(always)]"
            );
            Ok(object)
        })
        .collect()
}

/// BPF_LINKER, else on the PATH.
fn find_linker() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("BPF_LINKER") {
        let given = PathBuf::from(given);
        ensure!(given.is_file(), "BPF_LINKER={} is no file\n{NEEDS}", given.display());
        return Ok(given);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
        .with_context(|| format!("bpf-linker is not on the PATH\n{NEEDS}"))
}

fn home(variable: &str, default: &str) -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os(variable) {
        return Ok(given.into());
    }
    let home =
        std::env::var_os("HOME").with_context(|| format!("neither {variable} nor HOME is set"))?;
    Ok(Path::new(&home).join(default))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| shown.clone())?;
    ensure!(output.status.success(), "{shown}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

impl Toolchain {
    fn found(linker: &Path) -> anyhow::Result<Self> {
        let rustc = output(Command::new("rustc").arg("--version"))?;
        let version = output(Command::new(linker).arg("--version"))?;
        let bpf_linker = version.trim_start_matches("bpf-linker").trim().to_owned();
        ensure!(
            bpf_linker == LINKER_VERSION,
            "{} is version {bpf_linker}, not {LINKER_VERSION}\n{NEEDS}",
            linker.display()
        );
        Ok(Self { rustc, bpf_linker, llvm: llvm_of(linker)? })
    }

    fn to_toml(&self) -> String {
        let Self { rustc, bpf_linker, llvm } = self;
        format!(
            "# What the committed BPF objects were built by; written by `cargo xtask bpf`.\n\
             rustc = \"{rustc}\"\nbpf_linker = \"{bpf_linker}\"\nllvm = \"{llvm}\"\n"
        )
    }

    fn from_toml(text: &str) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse()?;
        let get = |key: &str| {
            let value = table.get(key).and_then(toml::Value::as_str);
            value.map(str::to_owned).with_context(|| format!("{VERSIONS_FILE}: no {key}"))
        };
        Ok(Self { rustc: get("rustc")?, bpf_linker: get("bpf_linker")?, llvm: get("llvm")? })
    }
}

/// The version of the LLVM library that a bpf-linker uses, as Debian names its package: the linker
/// itself does not tell.
fn llvm_of(linker: &Path) -> anyhow::Result<String> {
    let libraries = output(Command::new("ldd").arg(linker))?;
    let Some(line) = libraries.lines().find(|line| line.contains("libLLVM")) else {
        return Ok("linked statically".into());
    };
    let file = line.split_whitespace().nth(2).context("ldd: no path of libLLVM")?;
    let file = std::fs::canonicalize(file)?;
    let package = output(Command::new("dpkg").arg("--search").arg(&file))
        .context("asking Debian's dpkg whose library libLLVM is")?;
    let package = package.split(':').next().unwrap_or_default();
    output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", package]))
}
