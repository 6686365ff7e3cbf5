//! Landlock: files are written below a few folders only, none is executed, and nothing new is listened on.
//!
//! Reading is left everywhere: a reload may name other certificates, and rules can only be narrowed. Where TCP
//! connects to cannot be confined: Landlock knows ports, and not addresses.

use ::landlock::{
    ABI, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};

use super::Needs;

/// The newest that this code was written for; a kernel with less confines less.
const NEWEST: ABI = ABI::V6;

/// What changes the file system, or executes what is in it.
fn handled() -> BitFlags<AccessFs> {
    AccessFs::from_write(NEWEST) | AccessFs::Execute
}

/// What is left below a folder that is written to: plain files and folders, and nothing else.
fn writing() -> BitFlags<AccessFs> {
    AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
}

/// Confines this thread and those that it will start. The words say how far.
///
/// # Errors
/// A folder that cannot be opened, or a policy that forbids it.
pub(super) fn apply(needs: &Needs) -> Result<RulesetStatus, Problem> {
    let mut rules =
        Ruleset::default().handle_access(handled())?.handle_access(AccessNet::BindTcp)?.create()?;
    for folder in &needs.writes {
        let opened = PathFd::new(folder)
            .map_err(|source| Problem::Folder { folder: folder.display().to_string(), source })?;
        rules = rules.add_rule(PathBeneath::new(opened, writing()))?;
    }
    if let Some(port) = needs.listens {
        rules = rules.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Why it could not be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("{0}")]
    Rules(#[from] RulesetError),
    #[error("{folder}: {source}; it must be there when flowend starts")]
    Folder { folder: String, source: ::landlock::PathFdError },
}

/// Whether this kernel has it and it is switched on.
pub(super) fn is_there() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::WriteFile)
        .is_ok_and(|rules| rules.create().is_ok())
}
