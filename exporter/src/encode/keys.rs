//! The attributes that there are, and what each profile calls them.

use crate::config::Profile;

/// One line for each attribute: its name in `semconv`, and in `tracee` where that differs.
macro_rules! keys {
    ($($variant:ident = $semconv:literal $(, tracee $tracee:literal)?;)+) => {
        /// An attribute of a record, whatever the outputs call it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Key {
            $(#[doc = concat!("`", $semconv, "`.")] $variant,)+
        }

        impl Key {
            /// Every attribute.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// What a profile calls it.
            pub const fn name(self, profile: Profile) -> &'static str {
                match (self, profile) {
                    $($((Self::$variant, Profile::Tracee) => $tracee,)?
                    (Self::$variant, _) => $semconv,)+
                }
            }
        }
    };
}

// Names by PTR have no place in tracee's event: their keys are the same in each profile.
keys! {
    Direction = "flowend.connection.direction", tracee "connectionDirection";
    SourceIp = "source.address", tracee "srcIP";
    SourcePort = "source.port", tracee "srcPort";
    DestinationIp = "destination.address", tracee "dstIP";
    DestinationPort = "destination.port", tracee "dstPort";
    SourceDomains = "flowend.source.domains", tracee "srcDomains";
    DestinationDomains = "flowend.destination.domains", tracee "dstDomains";
    SourcePtr = "flowend.source.ptr";
    DestinationPtr = "flowend.destination.ptr";
    LocalDomains = "flowend.local.domains";
    PeerDomains = "flowend.peer.domains";
    LocalPtr = "flowend.local.ptr";
    PeerPtr = "flowend.peer.ptr";
    ClientAddress = "client.address";
    ClientPort = "client.port";
    ServerAddress = "server.address";
    ServerPort = "server.port";
    LocalIp = "network.local.address";
    LocalPort = "network.local.port";
    PeerIp = "network.peer.address";
    PeerPort = "network.peer.port";
    Transport = "network.transport";
    NetworkType = "network.type";
    EndBy = "flowend.end.by";
    EndReason = "flowend.end.reason";
    ResetBy = "flowend.end.reset_by";
    ConnState = "flowend.conn_state";
    History = "flowend.history";
    HalfClose = "flowend.half_close_us";
    Duration = "flowend.duration_us";
    StartKnown = "flowend.start_known";
    BytesSent = "flowend.bytes.sent";
    BytesReceived = "flowend.bytes.received";
    SegmentsSent = "flowend.segments.sent";
    SegmentsReceived = "flowend.segments.received";
    Retransmits = "flowend.retransmits";
    HandshakeRtt = "flowend.rtt.handshake_us";
    SmoothedRtt = "flowend.rtt.smoothed_us";
    MinRtt = "flowend.rtt.min_us";
    SamplingProbability = "flowend.sampling.probability";
    CommunityId = "flowend.community_id";
    ErrorType = "error.type";
    ProcessPid = "process.pid";
    ProcessExecutable = "process.executable.name";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_attributes_of_a_profile_have_one_name() {
        for profile in Profile::ALL {
            let names: HashSet<_> = Key::ALL.iter().map(|key| key.name(profile)).collect();
            assert_eq!(names.len(), Key::ALL.len(), "{profile:?}");
        }
    }

    #[test]
    fn a_key_is_its_own_index() {
        for (index, key) in Key::ALL.iter().enumerate() {
            assert_eq!(*key as usize, index);
        }
    }

    #[test]
    fn tracee_names_what_its_event_has_and_nothing_else() {
        let differ: Vec<_> = Key::ALL
            .iter()
            .map(|key| (key.name(Profile::Semconv), key.name(Profile::Tracee)))
            .filter(|(semconv, tracee)| semconv != tracee)
            .map(|(_, tracee)| tracee)
            .collect();
        let want = [
            "connectionDirection",
            "srcIP",
            "srcPort",
            "dstIP",
            "dstPort",
            "srcDomains",
            "dstDomains",
        ];
        assert_eq!(differ, want);
    }
}
