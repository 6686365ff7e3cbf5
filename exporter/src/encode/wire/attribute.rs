//! Attributes: the same KeyValue messages in a log record and in a span, but for the field's number.

use std::sync::Arc;

use bytes::BytesMut;

use super::address::Address;
use super::buffer::{Buffer, field_len, varint};
use crate::encode::Value;
use crate::export::Signal;

// Tags: field number and wire type in one byte.
const KEY: u8 = 0x0a;
const VALUE: u8 = 0x12;
/// AnyValue.string_value.
pub(super) const ANY_STRING: u8 = 0x0a;
const ANY_BOOL: u8 = 0x10;
const ANY_INT: u8 = 0x18;
const ANY_DOUBLE: u8 = 0x21;
const ANY_ARRAY: u8 = 0x2a;
const ARRAY_VALUE: u8 = 0x0a;

/// Of the field `attributes`: 6 in LogRecord, 9 in Span.
const fn tag(signal: Signal) -> u8 {
    match signal {
        Signal::Logs => 0x32,
        Signal::Traces => 0x4a,
    }
}

const PREFIX_BLOCK: usize = 48;

/// Lengths below it take one byte.
const ONE_BYTE: usize = 0x80;

/// The constant part of an attribute: from its tag to the length of its value, both lengths still open.
#[derive(Debug)]
pub(super) struct Prefix {
    name: Box<str>,
    block: [u8; PREFIX_BLOCK],
    len: usize,
    /// Length of the message but for the value; of a name that is too long for the block, one that no
    /// length of one byte allows.
    message: usize,
}

impl Prefix {
    pub(super) fn of(name: &str) -> Self {
        let mut buffer = Buffer::default();
        buffer.put(&[tag(Signal::Logs), 0]);
        buffer.field(KEY, name.as_bytes());
        buffer.put(&[VALUE, 0]);
        let (mut block, len) = ([0; PREFIX_BLOCK], buffer.len());
        let mut message = ONE_BYTE;
        if let Some(part) = block.get_mut(..len) {
            part.copy_from_slice(buffer.written());
            message = len - 2;
        }
        Self { name: name.into(), block, len, message }
    }
}

/// The attributes of a record, encoded with the tag of a log record.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    block: Buffer,
    /// Where each attribute begins.
    starts: Vec<u32>,
}

impl Attributes {
    pub(super) fn clear(&mut self) {
        self.block.clear();
        self.starts.clear();
    }

    pub(super) const fn len(&self) -> usize {
        self.block.len()
    }

    /// Appends them as the fields of a log record or of a span.
    pub(super) fn append_to(&self, bytes: &mut BytesMut, signal: Signal) {
        let base = bytes.len();
        bytes.extend_from_slice(self.block.written());
        if signal == Signal::Traces {
            let copy = &mut bytes[base..];
            for start in &self.starts {
                copy[*start as usize] = tag(signal);
            }
        }
    }

    /// Adds one. `known`: addresses whose text is at hand. Inlined, so that nothing of the match is left where
    /// the kind of the value is known; what it calls is not, as there are 40 callers.
    #[inline(always)]
    pub(super) fn put(&mut self, prefix: &Prefix, value: Value<'_>, known: [&Address; 2]) {
        match value {
            Value::Str(text) => self.string(prefix, text),
            Value::Int(n) => self.int(prefix, n),
            Value::Ip(addr) => match known.iter().find(|address| address.addr() == addr) {
                Some(address) => self.address(prefix, address),
                None => self.address(prefix, &Address::of(addr)),
            },
            Value::Bool(truth) => {
                self.head(prefix, 2);
                self.block.put(&[ANY_BOOL, truth.into()]);
            }
            Value::Double(n) => {
                self.head(prefix, 9);
                self.block.fixed64(ANY_DOUBLE, n.to_bits());
            }
            Value::List(items) => self.list(prefix, items),
        }
    }

    /// All of a KeyValue up to its value, which takes `value_len` bytes.
    #[inline(always)]
    fn head(&mut self, prefix: &Prefix, value_len: usize) {
        self.starts.push(self.block.len() as u32);
        let message = prefix.message + value_len;
        if message >= ONE_BYTE {
            return self.long_head(prefix, value_len);
        }
        let out = self.block.spare::<PREFIX_BLOCK>();
        *out = prefix.block;
        out[1] = message as u8;
        out[prefix.len - 1] = value_len as u8;
        self.block.advance(prefix.len);
    }

    #[cold]
    fn long_head(&mut self, prefix: &Prefix, value_len: usize) {
        self.block.byte(tag(Signal::Logs));
        self.block.varint((field_len(prefix.name.len()) + field_len(value_len)) as u64);
        self.block.field(KEY, prefix.name.as_bytes());
        self.block.byte(VALUE);
        self.block.varint(value_len as u64);
    }

    #[inline(never)]
    fn string(&mut self, prefix: &Prefix, text: &str) {
        self.head(prefix, field_len(text.len()));
        self.block.field(ANY_STRING, text.as_bytes());
    }

    #[inline(never)]
    fn int(&mut self, prefix: &Prefix, n: i64) {
        // A negative number is one of 64 bits.
        let (varint, len) = varint(n as u64);
        let value = u128::from(ANY_INT) | varint << 8;
        self.head(prefix, 1 + len);
        self.block.block(&value.to_le_bytes(), 1 + len);
    }

    #[inline(never)]
    fn address(&mut self, prefix: &Prefix, address: &Address) {
        let (block, len) = address.any_value();
        self.head(prefix, len);
        self.block.block(block, len);
    }

    #[inline(never)]
    fn list(&mut self, prefix: &Prefix, items: &[Arc<str>]) {
        let array: usize = items.iter().map(|item| field_len(field_len(item.len()))).sum();
        self.head(prefix, field_len(array));
        self.block.byte(ANY_ARRAY);
        self.block.varint(array as u64);
        for item in items {
            self.block.byte(ARRAY_VALUE);
            self.block.varint(field_len(item.len()) as u64);
            self.block.field(ANY_STRING, item.as_bytes());
        }
    }
}
