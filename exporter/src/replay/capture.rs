//! Reads a pcap or pcapng file, packet by packet, in constant memory.
//!
//! pcap-parser reads the blocks. Where one ends is found out here: so that what is damaged is named
//! with its place, and a wrong length does not make flowend wait for gigabytes.

use std::ops::Range;

use pcap_parser::{
    parse_enhancedpacketblock_be, parse_enhancedpacketblock_le, parse_interfacedescriptionblock_be,
    parse_interfacedescriptionblock_le, parse_pcap_frame, parse_pcap_frame_be,
    parse_pcap_frame_modified, parse_pcap_header, parse_sectionheaderblock,
    parse_simplepacketblock_be, parse_simplepacketblock_le,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::clock::Clock;

/// The longest packet or block believed: libpcap's own limit is 256 kB, and blocks of names or keys
/// may be longer.
const MAX_BLOCK: usize = 64 << 20;

/// Read from the file in one go.
const CHUNK: usize = 256 << 10;

/// Interfaces of one section: the number that a packet of the old block type can name.
const MAX_INTERFACES: usize = 1 << 16;

/// Length of a pcap file's header.
const PCAP_HEADER: usize = 24;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
/// Obsolete, but still met: what Wireshark wrote before 1.2.
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file is not there, or may not be read.
    #[error("{path}: {cause}; name a pcap or pcapng file that can be read")]
    Open {
        /// As given.
        path: String,
        /// Of the system.
        cause: std::io::Error,
    },
    /// Another kind of file.
    #[error("{path}: not a capture: {problem}")]
    NotACapture {
        /// As given.
        path: String,
        /// What it is instead, and what to do.
        problem: String,
    },
    /// The system failed in the middle.
    #[error("{path}: packet {packet}, at byte {offset}: {cause}; what came before it is reported")]
    Read {
        /// As given.
        path: String,
        /// Counted from 1.
        packet: u64,
        /// From the beginning of the file.
        offset: u64,
        /// Of the system.
        cause: std::io::Error,
    },
    /// The file ends too early, or says what cannot be.
    #[error(
        "{path}: packet {packet}, at byte {offset}: {problem}; what came before it is reported: \
         capture again, or copy what is whole (editcap {path} whole.pcapng)"
    )]
    Damaged {
        /// As given.
        path: String,
        /// Counted from 1: the packet that could not be read.
        packet: u64,
        /// Where it begins, from the beginning of the file.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

/// One captured packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Its place in the file, counted from 1.
    pub(super) index: u64,
    /// ns since 1970.
    pub(super) time_ns: u64,
    /// Number of the link type.
    pub(super) link: u32,
    /// What was captured of it.
    pub(super) bytes: &'a [u8],
    /// How long it was on the wire.
    pub(super) on_the_wire: u32,
}

/// A capture that is being read.
#[derive(Debug)]
pub(super) struct Capture<R> {
    path: String,
    input: R,
    /// `filled` is what of it has been read and not been handed out.
    buffer: Vec<u8>,
    filled: Range<usize>,
    /// Length of the block at the beginning of `filled` that was handed out last.
    spent: usize,
    /// Where `filled` begins in the file.
    offset: u64,
    packets: u64,
    /// For simple packets, which have no time: they follow the one before.
    last_time_ns: u64,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Pcap { link: u32, order: Order, nanoseconds: bool, modified: bool },
    Pcapng { order: Order, interfaces: Vec<Interface> },
}

/// Of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u32_at(self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = bytes.get(at..)?.first_chunk::<4>()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(*bytes),
            Self::Big => u32::from_be_bytes(*bytes),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    snap_length: u32,
    clock: Clock,
}

impl<R: AsyncRead + Unpin> Capture<R> {
    /// Reads the file's header. `path` is for messages.
    ///
    /// # Errors
    /// When the input fails, or is no capture.
    pub(super) async fn new(path: &str, input: R) -> Result<Self, CaptureError> {
        let mut capture = Self {
            path: path.to_owned(),
            input,
            buffer: vec![0; CHUNK],
            filled: 0..0,
            spent: 0,
            offset: 0,
            packets: 0,
            last_time_ns: 0,
            format: Format::Pcapng { order: Order::Little, interfaces: Vec::new() },
        };
        if !capture.fill(4).await? {
            let problem = if capture.filled.is_empty() { "it is empty" } else { "it is too short" };
            return Err(capture.not_a_capture(problem));
        }
        match *capture.bytes() {
            [0x0a, 0x0d, 0x0d, 0x0a, ..] => {}
            [0xa1, 0xb2, 0xc3 | 0x3c, 0xd4 | 0x4d, ..]
            | [0xd4 | 0x4d, 0xc3 | 0x3c, 0xb2, 0xa1, ..]
            | [0x34, 0xcd, 0xb2, 0xa1, ..] => capture.format = capture.pcap_header().await?,
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                return Err(capture.not_a_capture("it is compressed: decompress it first"));
            }
            _ => {
                let problem = "it begins neither as pcap nor as pcapng; save it as one of them, \
                               for example with editcap or tcpdump -w";
                return Err(capture.not_a_capture(problem));
            }
        }
        Ok(capture)
    }

    /// Packets handed out so far.
    pub(super) const fn packets(&self) -> u64 {
        self.packets
    }

    /// Bytes of the file that are done with.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next packet; `None` at the end of the file.
    ///
    /// # Errors
    /// [`CaptureError`], where the rest cannot be read. What was handed out before is good.
    pub(super) async fn next(&mut self) -> Result<Option<Packet<'_>>, CaptureError> {
        loop {
            let Some(length) = self.block().await? else { return Ok(None) };
            self.spent = length;
            match self.kind(length) {
                SECTION => self.begin_section(length)?,
                INTERFACE => self.add_interface(length)?,
                OLD_PACKET | SIMPLE_PACKET | ENHANCED_PACKET => break,
                // Statistics, names, keys, and what may be invented yet.
                _ => {}
            }
        }
        let facts = self.packet_in_block()?;
        self.packets += 1;
        self.last_time_ns = facts.time_ns;
        let start = self.filled.start + facts.bytes.start;
        let captured = self.filled.start + facts.bytes.end;
        Ok(Some(Packet {
            index: self.packets,
            time_ns: facts.time_ns,
            link: facts.link,
            bytes: &self.buffer[start..captured],
            on_the_wire: facts.on_the_wire,
        }))
    }

    async fn pcap_header(&mut self) -> Result<Format, CaptureError> {
        if !self.fill(PCAP_HEADER).await? {
            return Err(self.not_a_capture("it ends inside of its header"));
        }
        let Ok((_, header)) = parse_pcap_header(self.bytes()) else {
            return Err(self.not_a_capture("its header is no pcap header"));
        };
        self.spent = PCAP_HEADER;
        Ok(Format::Pcap {
            // The upper bits tell the length of a frame check sequence (pcap(5) of libpcap).
            link: header.network.0.cast_unsigned() & 0x03ff_ffff,
            order: if header.is_bigendian() { Order::Big } else { Order::Little },
            nanoseconds: header.is_nanosecond_precision(),
            modified: header.is_modified_format(),
        })
    }

    /// Makes the next block available at the beginning of `filled`: its length, or `None` at the end.
    async fn block(&mut self) -> Result<Option<usize>, CaptureError> {
        self.filled.start += self.spent;
        self.offset += self.spent as u64;
        self.spent = 0;
        if !self.fill(1).await? {
            return Ok(None);
        }
        let header = match self.format {
            Format::Pcap { modified, .. } => 16 + if modified { 8 } else { 0 },
            Format::Pcapng { .. } => 12,
        };
        if !self.fill(header).await? {
            return Err(self.cut_off());
        }
        let length = self.length_of_block(header)?;
        if length > MAX_BLOCK {
            return Err(self.damaged(&format!("a length of {length} bytes, which cannot be")));
        }
        if !self.fill(length).await? {
            return Err(self.cut_off());
        }
        if let Format::Pcapng { order, .. } = self.format {
            let order = self.order_of_block(order)?;
            let again = order.u32_at(self.bytes(), length - 4);
            if again.and_then(|n| usize::try_from(n).ok()) != Some(length) {
                return Err(self.damaged("a block whose two lengths differ"));
            }
        }
        Ok(Some(length))
    }

    fn length_of_block(&self, header: usize) -> Result<usize, CaptureError> {
        let at = |order: Order, at| order.u32_at(self.bytes(), at).unwrap_or(u32::MAX) as usize;
        match self.format {
            Format::Pcap { order, .. } => Ok(header.saturating_add(at(order, 8))),
            Format::Pcapng { order, .. } => {
                let length = at(self.order_of_block(order)?, 4);
                if length < header || length % 4 != 0 {
                    return Err(
                        self.damaged(&format!("a block of {length} bytes, which cannot be"))
                    );
                }
                Ok(length)
            }
        }
    }

    /// A section's header says itself how its numbers are written.
    fn order_of_block(&self, order: Order) -> Result<Order, CaptureError> {
        if Order::Little.u32_at(self.bytes(), 0) != Some(SECTION) {
            return Ok(order);
        }
        match Order::Little.u32_at(self.bytes(), 8) {
            Some(0x1a2b_3c4d) => Ok(Order::Little),
            Some(0x4d3c_2b1a) => Ok(Order::Big),
            _ => Err(self.damaged("a section whose byte order cannot be told")),
        }
    }

    /// The type of the pcapng block; every record of a pcap file counts as an enhanced packet.
    fn kind(&self, length: usize) -> u32 {
        match self.format {
            Format::Pcap { .. } => ENHANCED_PACKET,
            Format::Pcapng { order, .. } => {
                order.u32_at(&self.bytes()[..length], 0).unwrap_or_default()
            }
        }
    }

    fn begin_section(&mut self, length: usize) -> Result<(), CaptureError> {
        let Ok((_, section)) = parse_sectionheaderblock(&self.bytes()[..length]) else {
            return Err(self.damaged("a section header that cannot be read"));
        };
        let (version, order) =
            (section.major_version, if section.big_endian() { Order::Big } else { Order::Little });
        if version != 1 {
            return Err(self.damaged(&format!("pcapng of version {version}; only 1 is known")));
        }
        self.format = Format::Pcapng { order, interfaces: Vec::new() };
        Ok(())
    }

    fn add_interface(&mut self, length: usize) -> Result<(), CaptureError> {
        let block = &self.buffer[self.filled.start..self.filled.start + length];
        let Format::Pcapng { order, interfaces } = &mut self.format else { return Ok(()) };
        let parsed = match order {
            Order::Little => parse_interfacedescriptionblock_le(block),
            Order::Big => parse_interfacedescriptionblock_be(block),
        };
        let added = parsed.ok().filter(|_| interfaces.len() < MAX_INTERFACES).and_then(|(_, b)| {
            let clock = Clock::of(&b.options, *order == Order::Big)?;
            let link = b.linktype.0.cast_unsigned();
            interfaces.push(Interface { link, snap_length: b.snaplen, clock });
            Some(())
        });
        added.ok_or_else(|| self.damaged("an interface whose description cannot be used"))
    }

    /// The packet of the block at the beginning of `filled`.
    fn packet_in_block(&self) -> Result<PacketFacts, CaptureError> {
        let block = &self.bytes()[..self.spent];
        match &self.format {
            Format::Pcap { link, order, nanoseconds, modified } => {
                let parsed = match (order, modified) {
                    (_, true) => parse_pcap_frame_modified(block),
                    (Order::Little, _) => parse_pcap_frame(block),
                    (Order::Big, _) => parse_pcap_frame_be(block),
                };
                let Ok((_, frame)) = parsed else {
                    return Err(self.damaged("a packet whose header cannot be read"));
                };
                let fraction = u64::from(frame.ts_usec) * if *nanoseconds { 1 } else { 1000 };
                Ok(PacketFacts {
                    time_ns: u64::from(frame.ts_sec) * 1_000_000_000 + fraction,
                    link: *link,
                    bytes: block.len() - frame.data.len()..block.len(),
                    on_the_wire: frame.origlen,
                })
            }
            Format::Pcapng { order, interfaces } => {
                let facts = match order.u32_at(block, 0) {
                    Some(SIMPLE_PACKET) => self.simple(block, *order, interfaces),
                    Some(OLD_PACKET) => old(block, *order, interfaces),
                    _ => enhanced(block, *order, interfaces),
                };
                facts.ok_or_else(|| {
                    self.damaged("a packet longer than its block, or of an interface not described")
                })
            }
        }
    }

    /// A simple packet is of the first interface, and as long as what that captures at most.
    fn simple(&self, block: &[u8], order: Order, interfaces: &[Interface]) -> Option<PacketFacts> {
        let interface = interfaces.first()?;
        let packet = match order {
            Order::Little => parse_simplepacketblock_le(block),
            Order::Big => parse_simplepacketblock_be(block),
        };
        let (_, packet) = packet.ok()?;
        let cut_at = if interface.snap_length == 0 { u32::MAX } else { interface.snap_length };
        let captured = usize::try_from(packet.origlen.min(cut_at)).ok()?;
        let captured = captured.min(packet.data.len());
        Some(PacketFacts {
            time_ns: self.last_time_ns,
            link: interface.link,
            bytes: 12..12 + captured,
            on_the_wire: packet.origlen,
        })
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.filled.clone()]
    }

    /// Reads until there are `need` bytes; false when the input ends before. A pipe may keep it waiting
    /// for long: whoever does not want to wait any more drops the future.
    async fn fill(&mut self, need: usize) -> Result<bool, CaptureError> {
        while self.filled.len() < need {
            if self.filled.start + need > self.buffer.len() {
                self.buffer.copy_within(self.filled.clone(), 0);
                self.filled = 0..self.filled.len();
                self.buffer.resize(self.buffer.len().max(need), 0);
            }
            match self.input.read(&mut self.buffer[self.filled.end..]).await {
                Ok(0) => return Ok(false),
                Ok(n) => self.filled.end += n,
                Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    return Err(CaptureError::Read {
                        path: self.path.clone(),
                        packet: self.packets + 1,
                        offset: self.offset,
                        cause,
                    });
                }
            }
        }
        Ok(true)
    }

    fn cut_off(&self) -> CaptureError {
        self.damaged("the file ends inside of it")
    }

    fn damaged(&self, problem: &str) -> CaptureError {
        CaptureError::Damaged {
            path: self.path.clone(),
            packet: self.packets + 1,
            offset: self.offset,
            problem: problem.to_owned(),
        }
    }

    fn not_a_capture(&self, problem: &str) -> CaptureError {
        CaptureError::NotACapture { path: self.path.clone(), problem: problem.to_owned() }
    }
}

/// A packet by its place in the block.
#[derive(Debug)]
struct PacketFacts {
    time_ns: u64,
    link: u32,
    bytes: Range<usize>,
    on_the_wire: u32,
}

fn enhanced(block: &[u8], order: Order, interfaces: &[Interface]) -> Option<PacketFacts> {
    let packet = match order {
        Order::Little => parse_enhancedpacketblock_le(block),
        Order::Big => parse_enhancedpacketblock_be(block),
    };
    let (_, packet) = packet.ok()?;
    let interface = interfaces.get(usize::try_from(packet.if_id).ok()?)?;
    let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
    Some(PacketFacts {
        time_ns: interface.clock.unix_ns(ticks),
        link: interface.link,
        bytes: 28..28 + usize::try_from(packet.caplen).ok()?,
        on_the_wire: packet.origlen,
    })
}

/// Interface and count of drops in 16 bits each; from there on as an enhanced packet.
fn old(block: &[u8], order: Order, interfaces: &[Interface]) -> Option<PacketFacts> {
    let word = |at| order.u32_at(block, at);
    let first = block.get(8..)?.first_chunk::<2>()?;
    let interface = interfaces.get(usize::from(match order {
        Order::Little => u16::from_le_bytes(*first),
        Order::Big => u16::from_be_bytes(*first),
    }))?;
    let captured = usize::try_from(word(20)?).ok()?;
    let end = captured.checked_add(28)?;
    Some(PacketFacts {
        time_ns: interface.clock.unix_ns(u64::from(word(12)?) << 32 | u64::from(word(16)?)),
        link: interface.link,
        bytes: (end <= block.len() - 4).then_some(28..end)?,
        on_the_wire: word(24)?,
    })
}
