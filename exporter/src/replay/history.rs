//! Zeek's `history` of a connection, letter by letter, as its documentation defines it
//! (base/protocols/conn/main.zeek): upper case is the originator.
//!
//! `a`, `d`, `i`, `q`: once for each side. `s` or `h`, `f`, `r`: again where the sequence number is
//! another one than the last time. `c`, `g`, `t`, `w`: at the 1st, 10th, 100th, ... occurrence.

use flowend_probe_types::{ACK, FIN, RST, SYN, Segment};

/// Letters at most: forged packets could add one each.
const MAX_LETTERS: usize = 255;

/// Places in [`Side::last`].
const SYNS: usize = 0;
const FINS: usize = 1;
const RSTS: usize = 2;

/// Who sent a packet: the one that opened the connection, or is taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Upper case.
    Originator,
    /// Lower case.
    Responder,
}

impl Role {
    /// The other side.
    pub(super) const fn peer(self) -> Self {
        match self {
            Self::Originator => Self::Responder,
            Self::Responder => Self::Originator,
        }
    }
}

/// What is counted, and told on a logarithmic scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scaled {
    /// `c`: a wrong checksum.
    Checksum,
    /// `g`: the capture lacks payload that was acknowledged.
    Gap,
    /// `t`: payload sent again.
    Resent,
    /// `w`: a window of 0.
    ZeroWindow,
}

impl Scaled {
    const fn letter(self) -> char {
        match self {
            Self::Checksum => 'c',
            Self::Gap => 'g',
            Self::Resent => 't',
            Self::ZeroWindow => 'w',
        }
    }
}

/// The letters so far, and what decides about the next ones.
#[derive(Debug, Default)]
pub(super) struct History {
    letters: String,
    sides: [Side; 2],
}

#[derive(Debug, Default)]
struct Side {
    /// `a`, `d`, `i`, `q` told.
    told: [bool; 4],
    /// The sequence number of the last packet with a SYN (`s` or `h`), a FIN, an RST.
    last: [Option<u32>; 3],
    /// Occurrences of `c`, `g`, `t`, `w`.
    counts: [u64; 4],
}

impl History {
    /// Empty, or with the sign that the first packet's sender is not the originator.
    pub(super) fn new(flipped: bool) -> Self {
        Self { letters: if flipped { "^".into() } else { String::new() }, ..Self::default() }
    }

    /// The letters.
    pub(super) fn into_letters(self) -> String {
        self.letters
    }

    /// The letters of a segment's flags and payload.
    pub(super) fn segment(&mut self, role: Role, segment: &Segment) {
        let Segment { flags, seq, .. } = *segment;
        match (flags & SYN != 0, flags & FIN != 0, flags & RST != 0) {
            (true, false, false) => {
                self.numbered(role, SYNS, if flags & ACK == 0 { 's' } else { 'h' }, seq);
            }
            // A FIN stands behind the payload, so one sent again without it is the same.
            (false, true, false) => {
                self.numbered(role, FINS, 'f', seq.wrapping_add(segment.payload));
            }
            (false, false, true) => self.numbered(role, RSTS, 'r', seq),
            (true, _, _) => self.once(role, 3),
            (false, true, true) => self.once(role, 2),
            (false, false, false) if segment.payload > 0 => self.once(role, 1),
            (false, false, false) if flags & ACK != 0 => self.once(role, 0),
            (false, false, false) => {}
        }
    }

    /// A segment with a window of 0. It says nothing in or after an RST, and nobody waits for a window
    /// after the peer's FIN.
    pub(super) fn zero_window(&mut self, role: Role, flags: u8) {
        let is_reset = flags & RST != 0 || self.sides[role as usize].last[RSTS].is_some();
        if !is_reset && self.sides[role.peer() as usize].last[FINS].is_none() {
            self.scaled(role, Scaled::ZeroWindow);
        }
    }

    /// The other side is the originator after all, and no first packet was misjudged.
    pub(super) fn turn(&mut self) {
        let swap = |c: char| {
            if c.is_ascii_uppercase() { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() }
        };
        self.letters = self.letters.chars().filter(|c| *c != '^').map(swap).collect();
        self.sides.swap(0, 1);
    }

    /// One more occurrence.
    pub(super) fn scaled(&mut self, role: Role, what: Scaled) {
        let count = &mut self.sides[role as usize].counts[what as usize];
        *count += 1;
        let mut power = 1;
        while power < *count {
            power *= 10;
        }
        if power == *count {
            self.put(role, what.letter());
        }
    }

    fn once(&mut self, role: Role, which: usize) {
        if !std::mem::replace(&mut self.sides[role as usize].told[which], true) {
            self.put(role, ['a', 'd', 'i', 'q'][which]);
        }
    }

    fn numbered(&mut self, role: Role, which: usize, letter: char, seq: u32) {
        let last = self.sides[role as usize].last[which].replace(seq);
        if last != Some(seq) {
            self.put(role, letter);
        }
    }

    fn put(&mut self, role: Role, letter: char) {
        if self.letters.len() < MAX_LETTERS {
            self.letters.push(match role {
                Role::Originator => letter.to_ascii_uppercase(),
                Role::Responder => letter,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowend_probe_types::{Addr, PSH};

    /// Sender (upper case: the originator), flags, sequence number, payload.
    type Sent = (Role, u8, u32, u32);
    const O: Role = Role::Originator;
    const R: Role = Role::Responder;

    fn history(packets: &[Sent]) -> String {
        history_of(packets).into_letters()
    }

    fn history_of(packets: &[Sent]) -> History {
        let mut history = History::new(false);
        for (role, flags, seq, payload) in packets {
            let segment = Segment {
                src: Addr::default(),
                dst: Addr::default(),
                src_port: 0,
                dst_port: 0,
                seq: *seq,
                ack: 0,
                flags: *flags,
                payload: *payload,
            };
            history.segment(*role, &segment);
        }
        history
    }

    #[test]
    fn letters_follow_the_documentation() {
        let a_connection: &[Sent] = &[
            (O, SYN, 0, 0),
            (R, SYN | ACK, 0, 0),
            (O, ACK, 1, 0),
            (O, ACK | PSH, 1, 5),
            (R, ACK, 1, 0),
            (R, ACK, 1, 7),
            (O, ACK, 6, 0),
            (O, FIN | ACK, 6, 0),
            (R, FIN | ACK, 8, 0),
            (O, ACK, 7, 0),
        ];
        let cases: &[(&str, &[Sent], &str)] = &[
            ("whole", a_connection, "ShADadFf"),
            ("a SYN again", &[(O, SYN, 5, 0), (O, SYN, 5, 0)], "S"),
            ("another SYN", &[(O, SYN, 5, 0), (O, SYN, 6, 0), (O, SYN, 5, 0)], "SSS"),
            ("both sides", &[(O, SYN, 5, 0), (R, SYN, 5, 0)], "Ss"),
            ("RSTs", &[(R, RST, 1, 0), (R, RST, 1, 0), (R, RST | ACK, 9, 0)], "rr"),
            ("FINs", &[(O, FIN | ACK, 1, 0), (O, FIN | ACK, 1, 0), (O, FIN | ACK, 2, 0)], "FF"),
            ("payload in the FIN", &[(O, FIN | ACK, 1, 9)], "F"),
            ("that FIN again, bare", &[(O, FIN | ACK, 1, 9), (O, FIN | ACK, 10, 0)], "F"),
            ("payload in the SYN", &[(O, SYN, 1, 9)], "S"),
            ("payload in the RST", &[(O, RST, 1, 9)], "R"),
            ("a SYN, then a SYN-ACK with its number", &[(O, SYN, 5, 0), (O, SYN | ACK, 5, 0)], "S"),
            ("with another", &[(O, SYN, 5, 0), (O, SYN | ACK, 6, 0)], "SH"),
            ("neither ACK nor payload", &[(O, PSH, 1, 0)], ""),
            ("FIN and RST", &[(R, FIN | RST, 1, 0), (R, FIN | RST, 2, 0)], "i"),
            ("SYN and FIN", &[(O, SYN | FIN, 1, 0)], "Q"),
            ("SYN and RST", &[(O, SYN | RST | ACK, 1, 0)], "Q"),
        ];
        for (name, packets, want) in cases {
            assert_eq!(history(packets), *want, "{name}");
        }
    }

    #[test]
    fn counted_letters_come_at_powers_of_ten() {
        let letters = |n: u32| {
            let mut history = History::new(true);
            (0..n).for_each(|_| history.scaled(R, Scaled::Resent));
            history.into_letters()
        };
        for (n, want) in [(0, "^"), (1, "^t"), (9, "^t"), (10, "^tt"), (99, "^tt"), (100, "^ttt")] {
            assert_eq!(letters(n), want, "{n}");
        }
        let mut history = History::new(false);
        history.scaled(O, Scaled::Gap);
        history.scaled(R, Scaled::ZeroWindow);
        history.scaled(O, Scaled::Checksum);
        assert_eq!(history.into_letters(), "GwC");
    }

    #[test]
    fn a_zero_window_is_told_unless_nobody_waits_for_one() {
        for (name, before, flags, want) in [
            ("of an ACK", &[][..], ACK, "W"),
            ("of a SYN", &[], SYN, "W"),
            ("of an RST", &[], RST, ""),
            ("after the own FIN", &[(O, FIN | ACK, 1, 0)], ACK, "FW"),
            ("after the peer's FIN", &[(R, FIN | ACK, 1, 0)], ACK, "f"),
            ("after the own RST", &[(O, RST, 1, 0)], ACK, "R"),
            ("after the peer's RST", &[(R, RST, 1, 0)], ACK, "rW"),
        ] {
            let mut history = history_of(before);
            history.zero_window(O, flags);
            assert_eq!(history.into_letters(), want, "{name}");
        }
    }

    #[test]
    fn it_can_be_turned_round() {
        let mut history = History::new(true);
        history.scaled(R, Scaled::Gap);
        history.scaled(O, Scaled::Resent);
        history.turn();
        history.scaled(R, Scaled::Resent);
        assert_eq!(history.into_letters(), "Gt");
    }

    #[test]
    fn forged_packets_do_not_make_it_grow_without_bound() {
        let many: Vec<Sent> = (0..1000).map(|n| (O, RST, n, 0)).collect();
        assert_eq!(history(&many).len(), MAX_LETTERS);
    }
}
