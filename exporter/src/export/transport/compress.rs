//! Compression of request bodies, and of answers that come compressed all the same.

use std::io::{self, Read as _, Write as _};

use bytes::Bytes;

use crate::config::Compression;

/// Levels at which a second more of CPU would save little: each library's own default.
const ZSTD_LEVEL: i32 = zstd::DEFAULT_COMPRESSION_LEVEL;

/// Of what is decompressed the decoder keeps so much, as a power of two: 8 MiB, which every frame may ask for (RFC
/// 8878, section 3.1.1.1.2). The library's own limit is 128 MiB, which a few bytes of a receiver would then take.
const ZSTD_WINDOW_LOG: u32 = 23;

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
        b"zstd" => {
            let mut decoder = zstd::stream::read::Decoder::new(data).ok()?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).ok()?;
            decoder.take(most).read_to_end(&mut out)
        }
        _ => return None,
    }
    .ok()?;
    (out.len() <= limit).then(|| out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of no content that asks for a window of two to the power of `log` bytes.
    fn frame(log: u8) -> Vec<u8> {
        // Magic number, descriptor (nothing but a window), window, and an empty last block that is not compressed.
        [&[0x28, 0xb5, 0x2f, 0xfd, 0][..], &[(log - 10) << 3], &[1, 0, 0]].concat()
    }

    #[test]
    fn a_frame_of_zstd_takes_no_more_memory_than_every_decoder_grants() {
        for (log, want) in
            [(10, Some(Bytes::new())), (23, Some(Bytes::new())), (24, None), (27, None)]
        {
            assert_eq!(decompress(&frame(log), b"zstd", 100), want, "{log}");
        }
    }
}
