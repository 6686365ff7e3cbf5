//! Bytes that grow, and protobuf's ways to write a number (protobuf.dev, "Encoding").

use std::fmt;

/// Bytes to write to. What was allocated stays, zeroed or written before, so that a block of constant size
/// is copied without a call and then counts only as far as it means something.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// Forgets what was written.
    pub(super) const fn clear(&mut self) {
        self.len = 0;
    }

    /// How much was written.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// What was written.
    pub(super) fn written(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Changes a byte that was written.
    pub(super) fn set(&mut self, at: usize, byte: u8) {
        self.bytes[at] = byte;
    }

    /// The next `n` bytes, to be written.
    #[inline]
    fn next(&mut self, n: usize) -> &mut [u8] {
        if self.bytes.len() - self.len < n {
            self.grow(n);
        }
        &mut self.bytes[self.len..self.len + n]
    }

    #[cold]
    fn grow(&mut self, n: usize) {
        self.bytes.resize((self.len + n).next_power_of_two().max(1024), 0);
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        self.next(1)[0] = byte;
        self.len += 1;
    }

    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        copy(bytes, self.next(bytes.len()));
        self.len += bytes.len();
    }

    /// The first `len` bytes of a block: all of it is copied, which is faster.
    #[inline]
    pub(super) fn block<const N: usize>(&mut self, block: &[u8; N], len: usize) {
        *self.spare() = *block;
        self.advance(len);
    }

    /// The next `N` bytes, whatever is in them: to be written, and then taken in with [`Self::advance`].
    #[inline]
    pub(super) fn spare<const N: usize>(&mut self) -> &mut [u8; N] {
        if self.bytes.len() - self.len < N {
            self.grow(N);
        }
        self.bytes[self.len..].first_chunk_mut().expect("room was made")
    }

    /// Takes in what was written to [`Self::spare`].
    #[inline]
    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
        debug_assert!(self.len <= self.bytes.len());
    }

    pub(super) fn varint(&mut self, n: u64) {
        if n < 0x80 {
            return self.byte(n as u8);
        }
        let (word, len) = varint(n);
        self.block(&word.to_le_bytes(), len);
    }

    /// A field of wire type LEN that is at hand: tag, length, bytes.
    #[inline]
    pub(super) fn field(&mut self, tag: u8, bytes: &[u8]) {
        if bytes.len() < 0x80 {
            self.block(&[tag, bytes.len() as u8], 2);
        } else {
            self.byte(tag);
            self.varint(bytes.len() as u64);
        }
        self.put(bytes);
    }

    /// A field of wire type I64.
    pub(super) fn fixed64(&mut self, tag: u8, n: u64) {
        let [a, b, c, d, e, f, g, h] = n.to_le_bytes();
        self.put(&[tag, a, b, c, d, e, f, g, h]);
    }
}

impl fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// A varint, its first byte lowest, and how many bytes it takes. In a register: bytes that are written one by
/// one and then read as a whole would have to wait for each other.
#[inline]
pub(super) const fn varint(n: u64) -> (u128, usize) {
    if n < 0x80 {
        return (n as u128, 1);
    }
    let (mut word, mut rest, mut len) = (0, n, 0);
    while rest >= 0x80 {
        word |= ((rest & 0x7f | 0x80) as u128) << (8 * len);
        rest >>= 7;
        len += 1;
    }
    (word | (rest as u128) << (8 * len), len + 1)
}

/// Copies one slice to another of the same length. Most are short, and a call would take longer than the
/// copy: two parts of a constant size then cover them, which may overlap.
#[inline]
fn copy(from: &[u8], to: &mut [u8]) {
    #[inline]
    fn ends<const N: usize>(from: &[u8], to: &mut [u8]) -> Option<()> {
        *to.first_chunk_mut()? = *from.first_chunk::<N>()?;
        *to.last_chunk_mut()? = *from.last_chunk::<N>()?;
        Some(())
    }
    let copied = match from.len() {
        17..=32 => ends::<16>(from, to),
        8..=16 => ends::<8>(from, to),
        4..=7 => ends::<4>(from, to),
        2..=3 => ends::<2>(from, to),
        _ => None,
    };
    if copied.is_none() {
        to.copy_from_slice(from);
    }
}

/// How many bytes a varint takes.
pub(super) const fn varint_len(n: usize) -> usize {
    // 7 bits in each byte, and one byte at least.
    ((usize::BITS - (n | 1).leading_zeros()) as usize).div_ceil(7)
}

/// How many bytes a field of wire type LEN takes whose tag is one byte.
pub(super) const fn field_len(len: usize) -> usize {
    1 + varint_len(len) + len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_those_of_prost_and_of_the_length_that_was_told() {
        let edges = (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        for n in edges.chain([u64::MAX]) {
            let mut buffer = Buffer::default();
            buffer.varint(n);
            let mut want = Vec::new();
            prost::encoding::encode_varint(n, &mut want);
            assert_eq!(buffer.written(), want, "{n}");
            assert_eq!(varint_len(n as usize), want.len(), "{n}");
        }
    }

    #[test]
    fn slices_of_any_length_are_copied_whole() {
        let bytes: Vec<u8> = (1..=100).collect();
        for len in 0..=bytes.len() {
            let mut buffer = Buffer::default();
            buffer.put(&bytes[..len]);
            buffer.byte(0);
            let want: Vec<u8> = bytes[..len].iter().copied().chain([0]).collect();
            assert_eq!(buffer.written(), want);
        }
    }

    #[test]
    fn a_block_counts_as_far_as_it_means_something() {
        let mut buffer = Buffer::default();
        buffer.block(&[1; 48], 3);
        buffer.put(&[2, 2]);
        assert_eq!(buffer.written(), [1, 1, 1, 2, 2]);
        buffer.clear();
        buffer.block(&[3; 48], 0);
        assert!(buffer.written().is_empty());
    }

    #[test]
    fn what_does_not_fit_makes_room() {
        let mut buffer = Buffer::default();
        let long = vec![7; 5000];
        buffer.byte(1);
        buffer.put(&long);
        buffer.byte(2);
        assert_eq!(buffer.len(), 5002);
        assert_eq!(buffer.written()[1..5001], long);
    }
}
