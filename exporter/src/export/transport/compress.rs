//! Compression of request bodies, and of answers that come compressed all the same.

use std::io::{self, Read as _, Write as _};

use bytes::Bytes;

use crate::config::Compression;

/// Levels at which a second more of CPU would save little: each library's own default.
const ZSTD_LEVEL: i32 = zstd::DEFAULT_COMPRESSION_LEVEL;

/// `body` as the receiver is to get it.
///
/// # Errors
/// Of the libraries; not expected, for they write to memory.
pub(super) fn compress(body: Bytes, compression: Option<Compression>) -> io::Result<Bytes> {
    match compression {
        None => Ok(body),
        Some(Compression::Gzip) => {
            let out = Vec::with_capacity(body.len() / 4);
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            encoder.write_all(&body)?;
            encoder.finish().map(Bytes::from)
        }
        Some(Compression::Zstd) => zstd::bulk::compress(&body, ZSTD_LEVEL).map(Bytes::from),
    }
}

/// What was compressed by `name`, as gRPC names it: `None` where that is not known, or the data is no such, or
/// more than `limit` bytes come out.
pub(super) fn decompress(data: &[u8], name: &[u8], limit: usize) -> Option<Bytes> {
    let mut out = Vec::new();
    let most = limit as u64 + 1;
    match name {
        b"gzip" => flate2::read::GzDecoder::new(data).take(most).read_to_end(&mut out),
        b"zstd" => zstd::stream::read::Decoder::new(data).ok()?.take(most).read_to_end(&mut out),
        _ => return None,
    }
    .ok()?;
    (out.len() <= limit).then(|| out.into())
}
