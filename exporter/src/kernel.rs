//! What a kernel shows only from some version on, and cannot be asked for otherwise.
//!
//! What can be tried is tried: programs, the tracepoint of error reports, cgroups (`flowend check`).

/// Something that kernels show from a version on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Major and minor number of the first kernel that has it.
    pub since: (u32, u32),
    /// What is missing before, in words for the user.
    pub without: &'static str,
}

/// IPv6 SYN-ACKs at the egress hook of cgroups, which is not called for them before (measured on 6.1).
pub const IPV6_SYN_ACKS: Feature = Feature {
    since: (6, 6),
    without: "IPv6 SYN-ACKs are not seen: flowend.rtt.handshake_us is absent for accepted IPv6 connections, and there is no \
              handshake_failed over IPv6",
};

/// SO_KEEPALIVE and its times for sockops programs (`bpf_getsockopt`).
pub const KEEPALIVE_OPTIONS: Feature = Feature {
    since: (6, 1),
    without: "a connection's keepalive options are not told: where there are no error reports either, an expired keepalive is \
              reported as aborted, not timeout",
};

/// `SO_NETNS_COOKIE`, and `bpf_get_netns_cookie` for sockops programs.
pub const NETNS_COOKIES: Feature = Feature {
    since: (5, 15),
    without: "network namespaces have no cookie: a connection whose end was not seen is found to be gone only where all \
              namespaces could be looked at",
};

/// All of them, the newest first.
pub const FEATURES: [Feature; 3] = [IPV6_SYN_ACKS, KEEPALIVE_OPTIONS, NETNS_COOKIES];

/// The oldest kernel that flowend runs on.
pub const OLDEST: (u32, u32) = (5, 10);

impl Feature {
    /// Whether this kernel has it.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.is_in(numbers(&release()))
    }

    /// Whether the kernel with these numbers has it.
    #[must_use]
    pub fn is_in(&self, kernel: (u32, u32)) -> bool {
        kernel >= self.since
    }
}

/// As `uname -r` says it.
#[must_use]
pub fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

/// Major and minor number of a release; zeros where it has none.
#[must_use]
pub fn numbers(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-', '+']).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_up_to_its_second_number() {
        for (release, expected) in [
            ("6.18.44-fc-v595", (6, 18)),
            ("6.1.0-56-cloud-amd64", (6, 1)),
            ("6.12.117+deb12-cloud-amd64", (6, 12)),
            ("6.6-rc3", (6, 6)),
            ("5.10", (5, 10)),
            ("5.14.0-427.el9.x86_64", (5, 14)),
            ("unknown", (0, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(numbers(release), expected, "{release}");
        }
    }

    #[test]
    fn each_feature_is_missing_just_before_its_kernel() {
        for (kernel, lacks) in [
            ((5, 10), 3),
            ((5, 15), 2),
            ((6, 0), 2),
            ((6, 1), 1),
            ((6, 5), 1),
            ((6, 6), 0),
            ((7, 0), 0),
        ] {
            let missing = FEATURES.iter().filter(|feature| !feature.is_in(kernel)).count();
            assert_eq!(missing, lacks, "{kernel:?}");
        }
        assert!(FEATURES.iter().all(|feature| feature.since > OLDEST));
    }
}
