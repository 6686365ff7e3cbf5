//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::config::{Output, Sources};

/// Says when, how and by whom a TCP connection ended, as OpenTelemetry.
#[derive(Debug, Parser)]
#[command(name = "flowend", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch cgroups and report each connection end, until SIGTERM or SIGINT.
    Run {
        /// Where records go; may be given several times.
        #[arg(long = "output", value_name = "OUTPUT", value_enum)]
        outputs: Vec<Output>,
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Report the connections of a capture file (pcap or pcapng); needs no privilege.
    Replay {
        /// The capture.
        file: PathBuf,
        /// Own addresses: records are written from their side, instead of the client's; may be given
        /// several times.
        #[arg(long, value_name = "CIDR", value_parser = cidr)]
        local: Vec<IpNet>,
        /// Where records go; may be given several times.
        #[arg(long = "output", value_name = "OUTPUT", value_enum)]
        outputs: Vec<Output>,
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Validate the configuration, and probe what this kernel and these capabilities allow.
    Check {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print the effective configuration and where each value came from; secrets are redacted.
    PrintConfig {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Take down what a flowend with `pin = true` left in the kernel, where none will come back.
    Unpin {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// End real connections in a cgroup of its own in several ways, and show the records of them.
    Demo {
        /// Where the configuration comes from.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Makes the demo's connections; started by `demo`.
    #[command(hide = true)]
    DemoTraffic {
        /// The cgroup's folder to make them in.
        cgroup: PathBuf,
        /// A DNS server that knows the demo's name.
        nameserver: Option<SocketAddr>,
    },
}

/// Options of every subcommand.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file; none is read unless named.
    #[arg(long, value_name = "FILE", env = "FLOWEND_CONFIG")]
    pub config: Option<PathBuf>,
    /// One setting: a dotted key and a TOML value, or else a string; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// Where the configuration comes from in this process.
    pub fn sources(&self, outputs: &[Output]) -> Sources {
        let mut set = self.set.clone();
        if !outputs.is_empty() {
            let names: Vec<_> = outputs.iter().map(|o| format!("\"{}\"", o.as_str())).collect();
            set.push(format!("outputs=[{}]", names.join(",")));
        }
        Sources {
            file: self.config.clone().filter(|path| !path.as_os_str().is_empty()),
            set,
            env: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        }
    }
}

/// A range of addresses, or one address.
fn cidr(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| one()).map_err(|_| {
        "no range of addresses; write one like 10.0.0.0/8, fd00::/8 or 192.0.2.7".to_owned()
    })
}
