//! Text and JSON lines on stdout, or on any other writer.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::queue::{Limits, Queue};
use crate::encode::{HEADER, Mapping, json_line, text_line};
use crate::ledger::DropCause;
use crate::record::Record;

/// Lines written in one go.
const BATCH: Limits = Limits { records: 1024, bytes: usize::MAX };

/// How a record becomes a line.
#[derive(Clone, Debug)]
pub enum StreamFormat {
    /// Readable, with a heading; times of the local time zone.
    Text,
    /// JSON, with attributes as mapped.
    Json(Arc<Mapping>),
}

impl StreamFormat {
    /// As in the setting `outputs`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json(_) => "json",
        }
    }
}

/// A format that may be exchanged while lines are written.
#[derive(Clone, Debug)]
pub struct SharedFormat(Arc<RwLock<StreamFormat>>);

impl SharedFormat {
    /// This one, until another is set.
    pub fn new(format: StreamFormat) -> Self {
        Self(Arc::new(RwLock::new(format)))
    }

    /// From the next lines on.
    pub(super) fn set(&self, format: StreamFormat) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = format;
    }

    fn get(&self) -> StreamFormat {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes what comes through the queue until it is closed and empty.
///
/// The task ends with an error when the writer does, for example because the reader of a pipe went
/// away; what is left is counted as dropped.
pub fn spawn(
    queue: Arc<Queue<Arc<Record>>>,
    format: SharedFormat,
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
    format: &SharedFormat,
    writer: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let zone = TimeZone::system();
    if matches!(format.get(), StreamFormat::Text) {
        writer.write_all(format!("{HEADER}\n").as_bytes()).await?;
        writer.flush().await?;
    }
    let mut lines = String::new();
    while let Some(taken) = queue.take(BATCH, Duration::ZERO).await {
        // Where nobody reads the pipe, the task is aborted at the end.
        let held = taken.held.or(DropCause::Shutdown);
        lines.clear();
        let format = format.get();
        for record in &taken.items {
            match &format {
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
        held.settle(result.as_ref().map_or(Err(DropCause::OutputClosed), |()| Ok(())));
        result?;
    }
    Ok(())
}
