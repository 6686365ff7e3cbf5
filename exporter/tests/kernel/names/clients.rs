//! The programs that look names up: `resolve` (testing/resolve.c), built here with Debian's C libraries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Whose getaddrinfo().
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    /// One connected socket for the queries of both families; TCP after a truncated answer.
    Glibc,
    /// Static, as in small containers: all servers are asked at once from one unconnected socket.
    Musl,
}

impl Library {
    /// The compiler that a test needs.
    pub(super) const fn compiler(self) -> &'static str {
        match self {
            Self::Glibc => "cc",
            Self::Musl => "musl-gcc",
        }
    }

    /// The program, built once for all tests.
    pub(super) fn resolve(self) -> &'static Path {
        static BUILT: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
        BUILT[self as usize].get_or_init(|| self.build())
    }

    fn build(self) -> PathBuf {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = folder.join(format!("resolve-{self:?}").to_lowercase());
        // Another run of the tests may be executing the one that is there.
        let new = program.with_extension(std::process::id().to_string());
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/testing/resolve.c");
        let mut command = Command::new(self.compiler());
        command.args(["-O1", "-Wall", "-Wextra", "-Werror", source, "-o"]).arg(&new);
        if self == Self::Musl {
            command.arg("-static");
        }
        let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", self.compiler()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&new, &program).expect("in the same folder");
        program
    }
}
