//! Configuration: raw settings as written, usable settings as resolved.
//!
//! Layers, weakest first: the commented default file (compiled in), the user's file, the standard
//! `OTEL_*` variables, `FLOWEND_*`, `--set`. Every error names the file, variable or option, the key
//! and the remedy.

mod changes;
mod destinations;
mod env;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod layers;
mod names;
mod pinning;
mod print;
mod raw;
mod receiver;
mod sampling;
mod settings;
mod spool;

pub use changes::{Changes, changes};
pub use layers::{Layered, Sources, load};
pub use names::{NameSettings, ResolverCgroup, ReverseSettings, ScopeKind};
pub use pinning::Pinning;
pub use print::print;
pub(crate) use receiver::header;
pub use receiver::{
    ClientFiles, Compression, Destination, NamedFile, Protocol, Receiver, TlsFiles,
};
pub use settings::{Confine, Export, Output, Profile, Settings};
pub use spool::SpoolSettings;

/// The commented default configuration, which is also the lowest layer.
pub const DEFAULT: &str = include_str!("../../../config/flowend.toml");

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named by --config or FLOWEND_CONFIG cannot be read.
    #[error(
        "configuration file {path}: {cause}; name a readable file with --config, or leave it out to run with the defaults"
    )]
    File {
        /// As given.
        path: String,
        /// Of the system.
        cause: std::io::Error,
    },
    /// No TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax {
        /// File, variable or option.
        origin: String,
        /// The parser's words, with line and column.
        message: String,
    },
    /// No such key.
    #[error("{origin}: unknown key `{key}`; {remedy}")]
    UnknownKey {
        /// File, variable or option.
        origin: String,
        /// Dotted.
        key: String,
        /// What to do.
        remedy: String,
    },
    /// A value of another type.
    #[error("{origin}: key `{key}` must be {expected}, not {found}")]
    Type {
        /// File, variable or option.
        origin: String,
        /// Dotted.
        key: String,
        /// With an example: the default.
        expected: String,
        /// As given.
        found: String,
    },
    /// A value of the right type that cannot be used.
    #[error("{origin}: key `{key}`: {problem}")]
    Value {
        /// File, variable or option.
        origin: String,
        /// Dotted.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// `--set` without `=`.
    #[error("--set {given}: expected KEY=VALUE, for example --set sampling.ratio=0.1")]
    Set {
        /// As given.
        given: String,
    },
    /// The layers do not fit together. Not expected: each layer is checked by itself before.
    #[error("configuration: {0}")]
    Other(String),
}

#[cfg(test)]
mod tests;
