//! Addresses as text. One record says each of its two addresses several times.

use std::io::Write as _;
use std::net::IpAddr;

use flowend_probe_types::Addr;

use super::attribute::ANY_STRING;

/// Tag and length before the text.
const HEAD: usize = 2;

/// The longest text is that of eight groups of four digits: 39 bytes.
pub(super) const ADDRESS_BLOCK: usize = 48;

/// An address as an encoded AnyValue.
#[derive(Debug)]
pub(super) struct Address {
    addr: Addr,
    block: [u8; ADDRESS_BLOCK],
    len: usize,
}

impl Address {
    pub(super) fn of(addr: Addr) -> Self {
        let mut block = [0; ADDRESS_BLOCK];
        let len = match addr.into() {
            IpAddr::V4(v4) => write_v4(v4.octets(), &mut block[HEAD..]),
            IpAddr::V6(v6) => {
                let mut rest = &mut block[HEAD..];
                let room = rest.len();
                // It fits; see ADDRESS_BLOCK.
                let _ = write!(rest, "{v6}");
                room - rest.len()
            }
        };
        block[0] = ANY_STRING;
        block[1] = len as u8;
        Self { addr, block, len: HEAD + len }
    }

    /// Becomes another address, if it is another.
    pub(super) fn become_of(&mut self, addr: Addr) {
        if self.addr != addr {
            *self = Self::of(addr);
        }
    }

    pub(super) const fn addr(&self) -> Addr {
        self.addr
    }

    /// The AnyValue in a block, and how many bytes of it there are.
    pub(super) const fn any_value(&self) -> (&[u8; ADDRESS_BLOCK], usize) {
        (&self.block, self.len)
    }

    /// The text.
    pub(super) fn text(&self) -> &[u8] {
        &self.block[HEAD..self.len]
    }
}

/// Each number of one byte: its digits, and how many there are.
const OCTETS: [[u8; 4]; 256] = {
    let mut octets = [[0; 4]; 256];
    let mut n = 0;
    while n < 256 {
        let (hundreds, tens, ones) =
            (b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8);
        octets[n] = if n >= 100 {
            [hundreds, tens, ones, 3]
        } else if n >= 10 {
            [tens, ones, b'.', 2]
        } else {
            [ones, b'.', b'.', 1]
        };
        n += 1;
    }
    octets
};

/// Writes a dotted quad, and returns its length.
fn write_v4(octets: [u8; 4], out: &mut [u8]) -> usize {
    let mut at = 0;
    for octet in octets {
        let [a, b, c, digits] = OCTETS[usize::from(octet)];
        out[at..at + 4].copy_from_slice(&[a, b, c, b'.']);
        at += usize::from(digits);
        out[at] = b'.';
        at += 1;
    }
    at - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_the_standard_library_writes_them() {
        let quads = (0..=255_u8).map(|n| IpAddr::from([n, 255 - n, n / 2, n.reverse_bits()]));
        let v6 = ["::", "::1", "fe80::1", "2001:db8::8:0:0:1", "::ffff:192.0.2.7", "::192.0.2.7"];
        let longest = "1111:2222:3333:4444:5555:6666:7777:8888";
        let others = v6.iter().chain([&longest, &"255.255.255.255"]).map(|t| t.parse().unwrap());
        for ip in quads.chain(others) {
            let address = Address::of(ip.into());
            let want = ip.to_canonical().to_string();
            assert_eq!(address.text(), want.as_bytes());
            let (block, len) = address.any_value();
            assert_eq!(block[..2], [ANY_STRING, want.len() as u8]);
            assert_eq!(len, 2 + want.len());
        }
    }
}
