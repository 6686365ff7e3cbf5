//! Request bodies: encoded records put together, each workload with its resource.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::LazyLock;

use bytes::Bytes;

use super::buffer::{Buffer, field_len};
use super::record::Encoded;
use crate::encode::{SCOPE_NAME, SCOPE_VERSION};
use crate::enrich::Workload;
use crate::export::Signal;

// The same field numbers in both signals.
/// ExportLogsServiceRequest.resource_logs, ExportTraceServiceRequest.resource_spans.
const PER_RESOURCE: u8 = 0x0a;
/// ResourceLogs.resource, ResourceSpans.resource.
const RESOURCE: u8 = 0x0a;
/// ResourceLogs.scope_logs, ResourceSpans.scope_spans.
const PER_SCOPE: u8 = 0x12;
/// ScopeLogs.scope, ScopeSpans.scope.
const SCOPE: u8 = 0x0a;

/// Tag and length of a message of less than 4 GB, at most.
const HEAD_MAX: usize = 6;

/// flowend's scope as a field of ScopeLogs or ScopeSpans.
static SCOPE_FIELD: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let (mut scope, mut field) = (Buffer::default(), Buffer::default());
    scope.field(0x0a, SCOPE_NAME.as_bytes());
    scope.field(0x12, SCOPE_VERSION.as_bytes());
    field.field(SCOPE, scope.written());
    field.written().into()
});

/// The body of one ExportLogsServiceRequest or ExportTraceServiceRequest, not compressed: one ResourceLogs or
/// ResourceSpans for each workload, in the order in which they first appear, each with its records in order.
/// Items that have nothing for the signal are passed over.
pub fn request(signal: Signal, items: &[Arc<Encoded>]) -> Bytes {
    let groups = Groups::of(signal, items);
    let mut body = Vec::with_capacity(groups.size());
    for group in &groups.groups {
        head(PER_RESOURCE, group.resource_len(), &mut body);
        head(RESOURCE, group.workload.wire.len(), &mut body);
        body.extend_from_slice(&group.workload.wire);
        head(PER_SCOPE, group.scope_len(), &mut body);
        body.extend_from_slice(&SCOPE_FIELD);
        let mut next = Some(group.first);
        while let Some(at) = next {
            body.extend_from_slice(items[at].of(signal));
            next = groups.after(at);
        }
    }
    body.into()
}

/// How many bytes [`request`] makes of these.
pub fn request_size(signal: Signal, items: &[Arc<Encoded>]) -> usize {
    Groups::of(signal, items).size()
}

/// How many bytes an item adds to a request at most: all of its own, and those of its workload, which a
/// request holds once. The sum over some items is never less than [`request_size`] of them.
pub fn item_bound(signal: Signal, item: &Encoded) -> usize {
    match item.of(signal).len() {
        0 => 0,
        len => len + item.workload.wire.len() + SCOPE_FIELD.len() + 3 * HEAD_MAX,
    }
}

/// The items of one workload.
struct Group<'a> {
    workload: &'a Workload,
    first: usize,
    last: usize,
    /// Bytes of the items.
    len: usize,
}

impl Group<'_> {
    fn scope_len(&self) -> usize {
        SCOPE_FIELD.len() + self.len
    }

    fn resource_len(&self) -> usize {
        field_len(self.workload.wire.len()) + field_len(self.scope_len())
    }
}

/// No further item.
const LAST: u32 = u32::MAX;

struct Groups<'a> {
    groups: Vec<Group<'a>>,
    /// Of each item, the next one of the same group.
    next: Vec<u32>,
}

impl<'a> Groups<'a> {
    fn of(signal: Signal, items: &'a [Arc<Encoded>]) -> Self {
        let mut groups: Vec<Group<'a>> = Vec::new();
        let mut next = vec![LAST; items.len()];
        let mut index: HashMap<*const Workload, usize, foldhash::fast::RandomState> =
            HashMap::default();
        // Neighbours are often of one workload: then nothing is looked up.
        let mut current = usize::MAX;
        for (at, item) in items.iter().enumerate() {
            let len = item.of(signal).len();
            if len == 0 {
                continue;
            }
            let workload = Arc::as_ptr(&item.workload);
            if groups.get(current).is_none_or(|group| !std::ptr::eq(group.workload, workload)) {
                current = *index.entry(workload).or_insert(groups.len());
            }
            match groups.get_mut(current) {
                Some(group) => {
                    next[group.last] = at as u32;
                    group.last = at;
                    group.len += len;
                }
                None => groups.push(Group { workload: &item.workload, first: at, last: at, len }),
            }
        }
        Self { groups, next }
    }

    fn after(&self, at: usize) -> Option<usize> {
        Some(self.next[at]).filter(|next| *next != LAST).map(|next| next as usize)
    }

    fn size(&self) -> usize {
        self.groups.iter().map(|group| field_len(group.resource_len())).sum()
    }
}

/// Tag and length of a message.
fn head(tag: u8, len: usize, body: &mut Vec<u8>) {
    body.push(tag);
    prost::encoding::encode_varint(len as u64, body);
}
