//! Text and JSON lines on stdout, or on any other writer.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::Queue;
use crate::encode::{HEADER, Mapping, json_line, text_line};
use crate::ledger::DropCause;
use crate::record::Record;

/// Lines written in one go.
const BATCH: usize = 1024;

/// How a record becomes a line.
#[derive(Clone, Debug)]
pub enum StreamFormat {
    /// Readable, with a heading; times of the local time zone.
    Text,
    /// JSON, with these names of attributes.
    Json(Arc<Mapping>),
}

/// Writes what comes through the queue until it is closed and empty.
///
/// The task ends with an error when the writer does, for example because the reader of a pipe went
/// away; what is left is counted as dropped.
pub fn spawn(
    queue: Arc<Queue<Arc<Record>>>,
    format: StreamFormat,
    mut writer: impl AsyncWrite + Send + Unpin + 'static,
) -> JoinHandle<std::io::Result<()>> {
    tokio::spawn(async move {
        let result = write_all(&queue, &format, &mut writer).await;
        if result.is_err() {
            queue.abandon(DropCause::OutputClosed);
        }
        result
    })
}

async fn write_all(
    queue: &Queue<Arc<Record>>,
    format: &StreamFormat,
    writer: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let zone = TimeZone::system();
    if matches!(format, StreamFormat::Text) {
        writer.write_all(format!("{HEADER}\n").as_bytes()).await?;
        writer.flush().await?;
    }
    let mut lines = String::new();
    while let Some(batch) = queue.take(BATCH, Duration::ZERO).await {
        lines.clear();
        for record in &batch {
            match format {
                StreamFormat::Text => lines.push_str(&text_line(record, &zone)),
                StreamFormat::Json(mapping) => lines.push_str(&json_line(record, mapping)),
            }
            lines.push('\n');
        }
        let written = async {
            writer.write_all(lines.as_bytes()).await?;
            writer.flush().await
        };
        let result = written.await;
        queue.settle(&batch, result.as_ref().map_or(Err(DropCause::OutputClosed), |()| Ok(())));
        result?;
    }
    Ok(())
}
