//! Compression of request bodies.

use std::io::{self, Write as _};

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
