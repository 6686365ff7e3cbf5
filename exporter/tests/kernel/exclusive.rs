//! A program of somebody else that allows no other beside or below it.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;
use aya::programs::CgroupSkb;

use super::support::Cgroup;

const BPF_PROG_ATTACH: usize = 8;
const BPF_PROG_DETACH: usize = 9;
const BPF_CGROUP_INET_INGRESS: u32 = 0;

/// Attached for as long as it lives, to packets that come in. It lets them pass.
pub(crate) struct Exclusive {
    folder: File,
    noop: Ebpf,
}

impl Exclusive {
    pub(crate) fn attach(cgroup: &Cgroup) -> Self {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../bpf-probes/noop.bpf.o");
        let mut noop = Ebpf::load(&std::fs::read(object).unwrap()).unwrap();
        let program: &mut CgroupSkb = noop.program_mut("noop_ingress").unwrap().try_into().unwrap();
        program.load().unwrap();
        let mut exclusive = Self { folder: File::open(&cgroup.folder).unwrap(), noop };
        exclusive.call(BPF_PROG_ATTACH);
        exclusive
    }

    /// aya attaches by a link, which is never exclusive; the old call with no flags is.
    fn call(&mut self, command: usize) {
        #[repr(C)]
        struct AttachAttr {
            target_fd: u32,
            attach_bpf_fd: u32,
            attach_type: u32,
            attach_flags: u32,
            replace_bpf_fd: u32,
        }
        let program: &mut CgroupSkb =
            self.noop.program_mut("noop_ingress").unwrap().try_into().unwrap();
        let attr = AttachAttr {
            target_fd: self.folder.as_raw_fd().cast_unsigned(),
            attach_bpf_fd: program.fd().unwrap().as_fd().as_raw_fd().cast_unsigned(),
            attach_type: BPF_CGROUP_INET_INGRESS,
            attach_flags: 0,
            replace_bpf_fd: 0,
        };
        // SAFETY: the kernel reads the attribute structure, of the size given, during the call only.
        let result = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_bpf,
                command,
                std::ptr::from_ref(&attr),
                std::mem::size_of::<AttachAttr>(),
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.call(BPF_PROG_DETACH);
    }
}
