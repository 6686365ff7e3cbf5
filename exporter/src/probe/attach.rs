//! Loading each program by its type and attaching it to a cgroup.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, ProgramError,
    SockOps,
    links::{FdLink, LinkError},
};

use super::pins::Link;
use super::pins::name::{LinkKey, Pin};
use super::{AttachError, LoadError, LoadOptions, Optional, Probe};

/// A program of the object.
#[derive(Debug)]
pub struct Program {
    /// Name in the object.
    pub name: &'static str,
    /// What it is for, in words for the user.
    pub purpose: &'static str,
    /// Type and hook.
    pub kind: ProgramKind,
}

/// Type and hook of a program.
#[derive(Clone, Copy, Debug)]
pub enum ProgramKind {
    /// cgroup skb, ingress or egress.
    Skb(CgroupSkbAttachType),
    /// sockops.
    SockOps,
    /// cgroup connect4, connect6.
    Connect,
    /// cgroup post_bind4, post_bind6.
    Bind,
    /// cgroup sendmsg4, sendmsg6: the server that an unconnected UDP socket asks.
    SendMsg,
    /// cgroup skb for DNS alone, where names are looked up for others.
    ResolverSkb(CgroupSkbAttachType),
}

/// What a cgroup is attached to for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Its connections are reported, and it learns names.
    Target,
    /// It looks names up for others; its connections are not reported.
    Resolver,
}

impl Program {
    /// What flowend lacks where it cannot be had; `None` for those that it does not run without.
    pub const fn optional(&self) -> Option<Optional> {
        match self.kind {
            ProgramKind::Skb(_) | ProgramKind::ResolverSkb(_) => None,
            ProgramKind::SockOps => Some(Optional::Sockops),
            ProgramKind::Connect => Some(Optional::Connect),
            ProgramKind::Bind => Some(Optional::Bind),
            ProgramKind::SendMsg => Some(Optional::Sendmsg),
        }
    }

    /// Whether it is loaded.
    pub const fn is_wanted(&self, options: &LoadOptions) -> bool {
        if let Some(optional) = self.optional()
            && options.without.contains(optional)
        {
            return false;
        }
        match self.kind {
            ProgramKind::Skb(_) | ProgramKind::SockOps => true,
            ProgramKind::Bind => options.process,
            // The address that was asked for is looked up among the names.
            ProgramKind::Connect => options.process || options.dns,
            ProgramKind::SendMsg => options.dns,
            ProgramKind::ResolverSkb(_) => options.dns && options.resolvers,
        }
    }

    /// Whether it is attached to cgroups of this role.
    pub const fn is_for(&self, role: Role) -> bool {
        match role {
            Role::Target => !matches!(self.kind, ProgramKind::ResolverSkb(_)),
            Role::Resolver => {
                matches!(self.kind, ProgramKind::ResolverSkb(_) | ProgramKind::SendMsg)
            }
        }
    }
}

/// The programs, in the order in which they are attached: what explains a connection comes before
/// what reports it, so that a connection seen to begin is also seen to end.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "flowend_post_bind4",
        purpose: "process of listeners, IPv4",
        kind: ProgramKind::Bind,
    },
    Program {
        name: "flowend_post_bind6",
        purpose: "process of listeners, IPv6",
        kind: ProgramKind::Bind,
    },
    Program {
        name: "flowend_connect4",
        purpose: "process that connects, IPv4",
        kind: ProgramKind::Connect,
    },
    Program {
        name: "flowend_connect6",
        purpose: "process that connects, IPv6",
        kind: ProgramKind::Connect,
    },
    Program {
        name: "flowend_sendmsg4",
        purpose: "server asked without connecting, IPv4",
        kind: ProgramKind::SendMsg,
    },
    Program {
        name: "flowend_sendmsg6",
        purpose: "server asked without connecting, IPv6",
        kind: ProgramKind::SendMsg,
    },
    Program {
        name: "flowend_sockops",
        purpose: "establishment and CLOSE",
        kind: ProgramKind::SockOps,
    },
    Program {
        name: "flowend_ingress",
        purpose: "SYN, FIN and RST received, DNS",
        kind: ProgramKind::Skb(CgroupSkbAttachType::Ingress),
    },
    Program {
        name: "flowend_egress",
        purpose: "SYN, FIN and RST sent, DNS",
        kind: ProgramKind::Skb(CgroupSkbAttachType::Egress),
    },
    Program {
        name: "flowend_dns_ingress",
        purpose: "DNS received by a resolver",
        kind: ProgramKind::ResolverSkb(CgroupSkbAttachType::Ingress),
    },
    Program {
        name: "flowend_dns_egress",
        purpose: "DNS sent by a resolver",
        kind: ProgramKind::ResolverSkb(CgroupSkbAttachType::Egress),
    },
];

/// The programs attached to one cgroup; detached when dropped, unless they are pinned.
#[derive(Debug, Default)]
pub struct Attachment {
    links: Vec<Link>,
    /// Optional programs that found no place there.
    missing: Vec<Missing>,
}

/// An optional program that a cgroup does not take.
#[derive(Debug)]
struct Missing {
    program: &'static Program,
    optional: Optional,
    why: AttachError,
}

impl Attachment {
    /// Whether every program is still attached, given the links that are not.
    pub(super) fn is_whole(&self, detached: &HashSet<u32>) -> bool {
        self.links.iter().all(|link| !detached.contains(&link.id))
    }

    /// Detaches the programs for good, pinned or not.
    pub(super) fn detach(self) {
        self.links.into_iter().for_each(Link::detach);
    }

    /// Whether a program of this kind found no place there.
    pub(super) fn lacks(&self, optional: Optional) -> bool {
        self.missing.iter().any(|missing| missing.optional == optional)
    }

    /// What found no place there and why, in words for the user.
    pub fn missing(&self) -> impl Iterator<Item = String> {
        self.missing.iter().map(|missing| {
            format!(
                "{}; flowend runs without it there: {}",
                missing.why,
                missing.optional.without()
            )
        })
    }
}

impl From<Vec<Link>> for Attachment {
    fn from(links: Vec<Link>) -> Self {
        Self { links, missing: Vec::new() }
    }
}

/// The ids of this process's cgroup links that somebody detached: their folder was removed, or a
/// privileged program did so. The kernel shows it as cgroup 0 in the link's fdinfo
/// (kernel/bpf/cgroup.c, bpf_cgroup_link_show_fdinfo).
pub fn detached_links() -> HashSet<u32> {
    let mut detached = HashSet::new();
    let Ok(entries) = std::fs::read_dir("/proc/self/fdinfo") else { return detached };
    for entry in entries.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        if field("link_type") == Some("cgroup")
            && field("cgroup_id") == Some("0")
            && let Some(id) = field("link_id").and_then(|id| id.parse().ok())
        {
            detached.insert(id);
        }
    }
    detached
}

pub(super) fn load(ebpf: &mut Ebpf, program: &Program) -> Result<(), LoadError> {
    let name = program.name;
    let error = |e: ProgramError| LoadError::from_program(name, &e);
    match program.kind {
        ProgramKind::Skb(_) | ProgramKind::ResolverSkb(_) => {
            get::<CgroupSkb>(ebpf, name)?.load().map_err(error)
        }
        ProgramKind::SockOps => get::<SockOps>(ebpf, name)?.load().map_err(error),
        ProgramKind::Connect | ProgramKind::SendMsg => {
            get::<CgroupSockAddr>(ebpf, name)?.load().map_err(error)
        }
        ProgramKind::Bind => get::<CgroupSock>(ebpf, name)?.load().map_err(error),
    }
}

fn get<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program =
        ebpf.program_mut(name).ok_or_else(|| LoadError::Object(format!("no program {name}")))?;
    program.try_into().map_err(|error| LoadError::Object(format!("{name}: {error}")))
}

impl Probe {
    /// Attaches the programs of this role to the cgroup whose folder this is; `name` is how the user calls
    /// it. Where they are pinned there already, nothing is to be done. Optional ones that find no place are left out, see
    /// [`Attachment::missing`].
    ///
    /// # Errors
    /// [`AttachError`]; then nothing stays attached.
    pub fn attach(
        &mut self,
        folder: &Path,
        name: &str,
        role: Role,
    ) -> Result<Attachment, AttachError> {
        let cgroup = File::open(folder).map_err(|error| AttachError::from_open(name, &error))?;
        let mut attachment = Attachment::default();
        for program in PROGRAMS.iter().filter(|program| program.is_for(role)) {
            if self.is_loaded(program)
                && let Err(error) = self.attach_to(&mut attachment, program, &cgroup, name, role)
            {
                attachment.detach();
                return Err(error);
            }
        }
        Ok(attachment)
    }

    /// Tries once more what found no place before; which of it has one now.
    ///
    /// # Errors
    /// [`AttachError::Gone`], when the cgroup is.
    pub(super) fn complete(
        &mut self,
        attachment: &mut Attachment,
        folder: &Path,
        name: &str,
        role: Role,
    ) -> Result<Vec<&'static str>, AttachError> {
        if attachment.missing.is_empty() {
            return Ok(Vec::new());
        }
        let cgroup = File::open(folder).map_err(|error| AttachError::from_open(name, &error))?;
        let before: Vec<_> =
            std::mem::take(&mut attachment.missing).iter().map(|m| m.program).collect();
        for program in &before {
            self.attach_to(attachment, program, &cgroup, name, role)?;
        }
        let is_there =
            |name: &&str| attachment.missing.iter().all(|missing| missing.program.name != *name);
        Ok(before.into_iter().map(|program| program.name).filter(is_there).collect())
    }

    fn is_loaded(&self, program: &Program) -> bool {
        program.is_wanted(&self.options)
            && !self.refused.iter().any(|refused| refused.program == program.name)
    }

    fn attach_to(
        &mut self,
        attachment: &mut Attachment,
        program: &'static Program,
        cgroup: &File,
        name: &str,
        role: Role,
    ) -> Result<(), AttachError> {
        match self.link_of(program, cgroup, name, role) {
            Ok(link) => attachment.links.push(link),
            Err(why) => match program.optional() {
                Some(optional) if !matches!(why, AttachError::Gone { .. }) => {
                    attachment.missing.push(Missing { program, optional, why });
                }
                _ => return Err(why),
            },
        }
        Ok(())
    }

    /// The link of one program, by its pin or new.
    fn link_of(
        &mut self,
        program: &Program,
        cgroup: &File,
        name: &str,
        role: Role,
    ) -> Result<Link, AttachError> {
        let failed = |error| AttachError::from_program(name, program.name, &error);
        let other =
            |cause| AttachError::Other { cgroup: name.into(), program: program.name.into(), cause };
        let metadata = cgroup.metadata().map_err(|error| AttachError::from_open(name, &error))?;
        let key = LinkKey { cgroup: metadata.ino(), role, program: program.name.into() };
        if let Some(link) = self.pins.as_mut().and_then(|pins| pins.take(&key)) {
            return Ok(link);
        }
        let (id, link) = self.attach_one(program, cgroup).map_err(failed)?;
        match &self.pins {
            Some(pins) => {
                pins.pin_link(&Pin::Link(key), id, link).map_err(|error| other(error.to_string()))
            }
            None => Ok(Link::unpinned(id, link)),
        }
    }

    fn attach_one(
        &mut self,
        program: &Program,
        cgroup: &File,
    ) -> Result<(u32, FdLink), ProgramError> {
        // The kernel's link allows others beside it whatever the mode; any flag is EINVAL.
        let mode = CgroupAttachMode::Single;
        let found = self.ebpf.program_mut(program.name).ok_or(ProgramError::NotLoaded)?;
        let link: Result<FdLink, LinkError> = match program.kind {
            ProgramKind::Skb(hook) | ProgramKind::ResolverSkb(hook) => {
                let p: &mut CgroupSkb = found.try_into()?;
                let id = p.attach(cgroup, hook, mode)?;
                p.take_link(id)?.try_into()
            }
            ProgramKind::SockOps => {
                let p: &mut SockOps = found.try_into()?;
                let id = p.attach(cgroup, mode)?;
                p.take_link(id)?.try_into()
            }
            ProgramKind::Connect | ProgramKind::SendMsg => {
                let p: &mut CgroupSockAddr = found.try_into()?;
                let id = p.attach(cgroup, mode)?;
                p.take_link(id)?.try_into()
            }
            ProgramKind::Bind => {
                let p: &mut CgroupSock = found.try_into()?;
                let id = p.attach(cgroup, mode)?;
                p.take_link(id)?.try_into()
            }
        };
        // Links exist since Linux 5.7; the ring buffer needs 5.8, so there always is one.
        let link = link.map_err(|_| ProgramError::NotAttached)?;
        let id = link.info().map_err(|_| ProgramError::NotAttached)?.id();
        Ok((id, link))
    }
}
