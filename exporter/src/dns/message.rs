//! A DNS message: from bytes that anybody may have sent to a bounded struct.
//!
//! Names and service records are decoded by hickory-proto, one at a time: its whole `Message` would
//! decode every record that comes, whatever it is of. Before it is asked, a name is walked: no more than
//! [`MAX_LABELS`] labels and pointers, so that no message costs more time than its length is worth.

use std::net::IpAddr;

use flowend_probe_types::Addr;
use hickory_proto::rr::rdata::SVCB;
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder, Restrict};
use smallvec::SmallVec;

/// Length of a header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// The shortest question: the root, type and class (RFC 1035, section 4.1.2).
const MIN_QUESTION: usize = 5;

/// The shortest record: the root, type, class, TTL and length (RFC 1035, section 4.1.3).
const MIN_RECORD: usize = 11;

/// Labels, and pointers, that a name may have: 255 bytes hold 127 labels.
const MAX_LABELS: usize = 127;

/// Questions of one message. mDNS asks several at once (RFC 6762, section 5.3), all else one
/// (RFC 9619).
pub(super) const MAX_QUESTIONS: usize = 32;

/// Addresses, aliases and services of one message. What fits in 4,096 bytes is a quarter of that.
pub(super) const MAX_RECORDS: usize = 1024;

/// The class IN (RFC 1035, section 3.2.4).
const IN: u16 = 1;

/// The top bit of a class: "unicast answer, please" or "flush the cache" in mDNS (RFC 6762, sections
/// 5.4 and 10.2).
const MDNS_BIT: u16 = 0x8000;

/// The type that stands for all (RFC 1035, section 3.2.3).
const ANY: u16 = 255;

/// Type of the record that holds EDNS (RFC 6891, section 6.1.1).
const OPT: u16 = 41;

/// The first twelve bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) id: u16,
    flags: u16,
    /// Questions, answers, authority and additional records.
    counts: [u16; 4],
}

impl Header {
    /// `None` where there are fewer bytes.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER>()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Self { id: word(0), flags: word(2), counts: [word(4), word(6), word(8), word(10)] })
    }

    pub(super) const fn is_answer(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    /// Whether it is a query, or the answer to one: no update, no notification.
    pub(super) const fn is_standard(&self) -> bool {
        self.flags & 0x7800 == 0
    }

    /// The server had more to say than fits (RFC 2181, section 9).
    pub(super) const fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }

    /// Of LLMNR: the responder is not sure yet that the name is its own (RFC 4795, section 2.1.1).
    pub(super) const fn is_tentative(&self) -> bool {
        self.flags & 0x0100 != 0
    }

    pub(super) const fn has_answers(&self) -> bool {
        self.counts[1] != 0
    }

    /// Whether so many questions and records can be in so many bytes.
    fn fits(&self, len: usize) -> bool {
        let [questions, records @ ..] = self.counts.map(usize::from);
        let records: usize = records.iter().sum();
        HEADER + questions * MIN_QUESTION + records * MIN_RECORD <= len
    }
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It is no DNS.
    Malformed,
    /// More than [`MAX_RECORDS`].
    TooManyRecords,
}

/// One name of a message. Equal names of one message are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NameId(u16);

/// A question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) name: NameId,
    pub(super) kind: u16,
    /// Without the bit of mDNS.
    pub(super) class: u16,
}

/// A record that says something about addresses.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) owner: NameId,
    /// Seconds.
    pub(super) ttl: u32,
    /// From the additional section, not the answer section.
    pub(super) additional: bool,
    pub(super) data: Data,
}

/// Of a record.
#[derive(Debug)]
pub(super) enum Data {
    /// A, AAAA.
    Address(Addr),
    /// CNAME.
    Alias(NameId),
    /// SRV, SVCB, HTTPS: where the service is, and addresses told along with it (RFC 9460, section
    /// 7.3).
    Service(NameId, Box<[Addr]>),
}

/// A message: its questions, and those records that say something about addresses.
#[derive(Debug, Default)]
pub(super) struct Message {
    names: Names,
    pub(super) questions: SmallVec<[Question; 1]>,
    pub(super) records: SmallVec<[Record; 8]>,
    /// With the upper bits of EDNS (RFC 6891, section 6.1.3).
    pub(super) rcode: u16,
    /// Whether there is an answer of the type asked for.
    pub(super) has_type: bool,
    /// Records kept, and hints in them.
    told: usize,
}

impl Message {
    /// Of a query: its questions.
    pub(super) fn query(bytes: &[u8], header: &Header) -> Result<Self, Flaw> {
        Self::questions(bytes, header).map(|(message, _)| message)
    }

    /// Of an answer: all.
    pub(super) fn answer(bytes: &[u8], header: &Header) -> Result<Self, Flaw> {
        let (mut message, mut at) = Self::questions(bytes, header)?;
        message.rcode = header.flags & 0xf;
        for (section, count) in [Section::Answer, Section::Authority, Section::Additional]
            .into_iter()
            .zip(&header.counts[1..])
        {
            for _ in 0..*count {
                at = message.record(bytes, at, section)?;
            }
        }
        Ok(message)
    }

    /// The labels of a name, each behind its length, in lower case, without the root.
    pub(super) fn labels(&self, name: NameId) -> &[u8] {
        self.names.labels(name)
    }

    fn questions(bytes: &[u8], header: &Header) -> Result<(Self, usize), Flaw> {
        let count = usize::from(header.counts[0]);
        if !header.fits(bytes.len()) || count > MAX_QUESTIONS {
            return Err(Flaw::Malformed);
        }
        let mut message = Self::default();
        let mut at = HEADER;
        for _ in 0..count {
            let (name, end) = message.names.read(bytes, at).ok_or(Flaw::Malformed)?;
            let kind = word(bytes, end).ok_or(Flaw::Malformed)?;
            let class = word(bytes, end + 2).ok_or(Flaw::Malformed)? & !MDNS_BIT;
            message.questions.push(Question { name, kind, class });
            at = end + 4;
        }
        Ok((message, at))
    }

    /// Takes in the record that begins at `at`. Returns where it ends.
    fn record(&mut self, bytes: &[u8], at: usize, section: Section) -> Result<usize, Flaw> {
        let raw = RawRecord::read(bytes, at).ok_or(Flaw::Malformed)?;
        if raw.kind == OPT {
            self.rcode |= u16::from(raw.ttl.to_be_bytes()[0]) << 4;
        }
        if section == Section::Authority || raw.class & !MDNS_BIT != IN || raw.kind == OPT {
            return Ok(raw.end);
        }
        if section == Section::Answer {
            self.has_type |= self.questions.iter().any(|q| q.kind == raw.kind || q.kind == ANY);
        }
        if !is_wanted(raw.kind) {
            return Ok(raw.end);
        }
        let (owner, _) = self.names.read(bytes, at).ok_or(Flaw::Malformed)?;
        let Some(data) = self.names.data(bytes, &raw, owner).ok_or(Flaw::Malformed)? else {
            return Ok(raw.end);
        };
        let hints = if let Data::Service(_, hints) = &data { hints.len() } else { 0 };
        self.told += 1 + hints;
        if self.told > MAX_RECORDS {
            return Err(Flaw::TooManyRecords);
        }
        // A TTL is 31 bits; with the top bit set it counts as 0 (RFC 2181, section 8).
        let ttl = if raw.ttl > i32::MAX as u32 { 0 } else { raw.ttl };
        let additional = section == Section::Additional;
        self.records.push(Record { owner, ttl, additional, data });
        Ok(raw.end)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
    Additional,
}

/// A record by its place in the message.
struct RawRecord {
    kind: u16,
    class: u16,
    ttl: u32,
    data: usize,
    end: usize,
}

impl RawRecord {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let at = skip_name(bytes, at)?;
        let (kind, class) = (word(bytes, at)?, word(bytes, at + 2)?);
        let ttl = u32::from_be_bytes(*bytes.get(at + 4..)?.first_chunk()?);
        let data = at + 10;
        let end = data + usize::from(word(bytes, at + 8)?);
        (end <= bytes.len()).then_some(Self { kind, class, ttl, data, end })
    }
}

fn is_wanted(kind: u16) -> bool {
    use RecordType::{A, AAAA, CNAME, HTTPS, SRV, SVCB};
    [A, AAAA, CNAME, SRV, SVCB, HTTPS].into_iter().any(|wanted| u16::from(wanted) == kind)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Where a name ends in its place: behind its root or its first pointer.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            len @ 1..=63 => at += 1 + usize::from(len),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// Where the first label of a name lies; `None` where following it takes too long.
fn walk_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut first = None;
    for _ in 0..2 * MAX_LABELS {
        match *bytes.get(at)? {
            0 => return Some(*first.get_or_insert(at)),
            len @ 1..=63 => {
                first.get_or_insert(at);
                at += 1 + usize::from(len);
            }
            0xc0.. => at = usize::from(word(bytes, at)? & 0x3fff),
            _ => return None,
        }
    }
    None
}

/// The names of a message, each once.
#[derive(Debug, Default)]
struct Names {
    labels: SmallVec<[u8; 256]>,
    spans: SmallVec<[Span; 8]>,
}

#[derive(Debug)]
struct Span {
    /// Where in the message its first label lies: most names are pointers to a name before.
    first: usize,
    start: usize,
    end: usize,
}

impl Names {
    fn labels(&self, NameId(id): NameId) -> &[u8] {
        let span = &self.spans[usize::from(id)];
        &self.labels[span.start..span.end]
    }

    /// The name at `at`, and where it ends there.
    fn read(&mut self, bytes: &[u8], at: usize) -> Option<(NameId, usize)> {
        let end = skip_name(bytes, at)?;
        let first = walk_name(bytes, at)?;
        if let Some(known) = self.spans.iter().position(|span| span.first == first) {
            return Some((NameId(u16::try_from(known).ok()?), end));
        }
        let mut decoder = BinDecoder::new(bytes).clone(u16::try_from(at).ok()?);
        let name = Name::read(&mut decoder).ok()?;
        Some((self.add(&name, first)?, end))
    }

    fn add(&mut self, name: &Name, first: usize) -> Option<NameId> {
        let start = self.labels.len();
        for label in name.iter() {
            self.labels.push(u8::try_from(label.len()).ok()?);
            self.labels.extend_from_slice(label);
        }
        // Lengths are below 64, and so no letters.
        self.labels[start..].make_ascii_lowercase();
        let (before, new) = self.labels.split_at(start);
        let known = self.spans.iter().position(|span| before[span.start..span.end] == *new);
        if let Some(known) = known {
            self.labels.truncate(start);
            return Some(NameId(u16::try_from(known).ok()?));
        }
        let id = NameId(u16::try_from(self.spans.len()).ok()?);
        self.spans.push(Span { first, start, end: self.labels.len() });
        Some(id)
    }

    /// What a record says. `Some(None)`: nothing of use.
    fn data(&mut self, bytes: &[u8], raw: &RawRecord, owner: NameId) -> Option<Option<Data>> {
        let data = &bytes[raw.data..raw.end];
        Some(match RecordType::from(raw.kind) {
            RecordType::A => {
                let octets = <[u8; 4]>::try_from(data).ok()?;
                Some(Data::Address(IpAddr::from(octets).into()))
            }
            RecordType::AAAA => {
                let octets = <[u8; 16]>::try_from(data).ok()?;
                Some(Data::Address(IpAddr::from(octets).into()))
            }
            RecordType::CNAME => Some(Data::Alias(self.whole_name(bytes, raw.data, raw.end)?)),
            RecordType::SRV => {
                // Priority, weight and port come first (RFC 2782).
                let target = self.whole_name(bytes, raw.data + 6, raw.end)?;
                // The root says that there is no such service.
                let there = !self.labels(target).is_empty();
                there.then(|| Data::Service(target, Box::default()))
            }
            RecordType::SVCB | RecordType::HTTPS => self.service(bytes, raw, owner)?,
            _ => None,
        })
    }

    fn whole_name(&mut self, bytes: &[u8], at: usize, end: usize) -> Option<NameId> {
        let (name, name_end) = self.read(bytes, at)?;
        (name_end == end).then_some(name)
    }

    /// SVCB and HTTPS (RFC 9460, section 2.2).
    fn service(&mut self, bytes: &[u8], raw: &RawRecord, owner: NameId) -> Option<Option<Data>> {
        // Priority first. The target is walked before hickory follows it.
        let first = walk_name(bytes, raw.data + 2)?;
        let len = Restrict::new(u16::try_from(raw.end - raw.data).ok()?);
        let mut decoder = BinDecoder::new(bytes).clone(u16::try_from(raw.data).ok()?);
        let svcb = match RData::read(&mut decoder, RecordType::SVCB, len).ok()? {
            RData::SVCB(svcb) => svcb,
            _ => return None,
        };
        let is_alias = svcb.svc_priority == 0;
        let target = match (svcb.target_name.is_root(), is_alias) {
            // No such service (section 2.5.1).
            (true, true) => return Some(None),
            // The owner itself (section 2.5.2).
            (true, false) => owner,
            (false, _) => self.add(&svcb.target_name, first)?,
        };
        // The parameters of an alias are ignored (section 2.4.2).
        let hints = if is_alias { Box::default() } else { hints(&svcb) };
        Some(Some(Data::Service(target, hints)))
    }
}

fn hints(svcb: &SVCB) -> Box<[Addr]> {
    let mut hints: Vec<IpAddr> = Vec::new();
    for (_, value) in &svcb.svc_params {
        match value {
            SvcParamValue::Ipv4Hint(ips) => hints.extend(ips.0.iter().map(|a| IpAddr::V4(a.0))),
            SvcParamValue::Ipv6Hint(ips) => hints.extend(ips.0.iter().map(|a| IpAddr::V6(a.0))),
            _ => {}
        }
    }
    hints.into_iter().map(Addr::from).collect()
}
