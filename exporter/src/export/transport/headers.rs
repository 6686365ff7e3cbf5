//! Headers from a file: tokens that somebody else renews while flowend runs.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::{NamedFile, header};

/// The file is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Receivers take less than this in all headers together.
const MAX_FILE: u64 = 64 << 10;

/// The headers in a file, a `name: value` or `name=value` on each line; empty lines and those that begin
/// with `#` do not count. It is read again when it was changed.
#[derive(Debug)]
pub(super) struct HeadersFile(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    file: NamedFile,
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    headers: Result<Arc<HeaderMap>, String>,
}

/// Another one is another file, or another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    inode: u64,
    length: u64,
}

impl HeadersFile {
    pub(super) fn new(file: NamedFile) -> Self {
        let headers = Ok(Arc::default());
        Self(Arc::new(Mutex::new(State { file, looked: None, stamp: None, headers })))
    }

    /// What the file says now, or a moment ago.
    ///
    /// The lock goes along with the thread that reads: on a file system that hangs, one thread hangs, and
    /// the requests behind it run into their timeout.
    pub(super) async fn headers(&self) -> Result<Arc<HeaderMap>, String> {
        let now = Instant::now();
        let mut state = Arc::clone(&self.0).lock_owned().await;
        if !state.is_due(now) {
            return state.headers.clone();
        }
        let look = tokio::task::spawn_blocking(move || state.look(now));
        look.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// As [`Self::headers`], for callers that cannot wait; it reads on this thread.
    pub(super) fn headers_now(&self) -> Result<Arc<HeaderMap>, String> {
        let now = Instant::now();
        let mut state = self.0.try_lock().map_err(|_| "the headers are being read".to_owned())?;
        if state.is_due(now) { state.look(now) } else { state.headers.clone() }
    }
}

impl State {
    fn is_due(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_EVERY)
    }

    fn look(&mut self, now: Instant) -> Result<Arc<HeaderMap>, String> {
        self.looked = Some(now);
        let NamedFile { origin, key, path } = &self.file;
        let shown = path.display();
        match read(&self.file, self.stamp) {
            Ok(None) => {}
            Ok(Some((stamp, headers))) => {
                self.stamp = Some(stamp);
                self.headers = Ok(Arc::new(headers));
            }
            Err(problem) => {
                // What it said before may be a token that was withdrawn.
                self.stamp = None;
                self.headers = Err(format!("{origin}: key `{key}`: {shown}: {problem}"));
            }
        }
        self.headers.clone()
    }
}

/// The headers, unless the file still is the one of `known`.
fn read(file: &NamedFile, known: Option<Stamp>) -> Result<Option<(Stamp, HeaderMap)>, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked of what is open: the name may mean another file by then.
    let open = std::fs::File::open(&file.path).map_err(cannot)?;
    let metadata = open.metadata().map_err(cannot)?;
    let stamp = Stamp {
        modified: metadata.modified().map_err(cannot)?,
        inode: metadata.ino(),
        length: metadata.len(),
    };
    if known == Some(stamp) {
        return Ok(None);
    }
    let mut text = String::new();
    open.take(MAX_FILE + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    parse(&text).map(|headers| Some((stamp, headers)))
}

/// The problem names the line, and never what stands in it: it may be a secret.
fn parse(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line
            .split_once([':', '='])
            .ok_or_else(|| format!("line {number} is no `name: value` and no `name=value`"))?;
        let (name, value) = header(name.trim(), value.trim())
            .map_err(|problem| format!("line {number}: the header {problem}"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(path: &Path) -> HeadersFile {
        let (origin, key) = ("file f".into(), "otlp.headers_file".into());
        HeadersFile::new(NamedFile { origin, key, path: path.to_owned() })
    }

    #[test]
    fn lines_are_headers() {
        for (text, want) in [
            ("", Ok(vec![])),
            ("# a comment\n\n  \n", Ok(vec![])),
            ("Authorization: Basic YTpi==\r\n", Ok(vec![("authorization", "Basic YTpi==")])),
            ("api-key=a:b=c\nx-tenant = t", Ok(vec![("api-key", "a:b=c"), ("x-tenant", "t")])),
            ("a: 1\nA: 2", Ok(vec![("a", "2")])),
            ("a: 1\nhush", Err("line 2 is no `name: value` and no `name=value`")),
            ("hu sh: 1", Err("line 1: the header is no name of an HTTP header")),
            ("a: hu\u{1}sh", Err("line 1: the header the value is no text of an HTTP header")),
            (
                "te: hush",
                Err("line 1: the header is a header that flowend sets itself; leave it out"),
            ),
        ] {
            let got = parse(text);
            let got = got.as_ref().map_err(String::as_str).map(|headers| {
                let mut pairs: Vec<_> =
                    headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
                pairs.sort_unstable();
                pairs
            });
            assert_eq!(got, want, "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_read_again_but_not_more_than_once_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        std::fs::write(&path, "a: 1").unwrap();
        let headers = file(&path);
        let value = async || headers.headers().await.map(|h| h["a"].to_str().unwrap().to_owned());
        assert_eq!(value().await.as_deref(), Ok("1"));
        std::fs::write(&path, "a: 22").unwrap();
        assert_eq!(value().await.as_deref(), Ok("1"), "not looked at yet");
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(value().await.as_deref(), Ok("22"));
        // Replaced by a file of the same length, as a rotation does it.
        let next = folder.path().join("next");
        std::fs::write(&next, "a: 33").unwrap();
        std::fs::rename(&next, &path).unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(value().await.as_deref(), Ok("33"));
        // Gone: the old token is not used on.
        std::fs::remove_file(&path).unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        let error = value().await.unwrap_err();
        assert!(
            error.starts_with("file f: key `otlp.headers_file`: /")
                && error.contains("/headers: cannot be read: No such file"),
            "{error}"
        );
        std::fs::write(&path, "a: 4").unwrap();
        assert!(value().await.is_err(), "not looked at yet");
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(value().await.as_deref(), Ok("4"));
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(headers.headers_now().unwrap()["a"], "4");
    }

    #[tokio::test]
    async fn a_file_that_is_too_large_or_no_text_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        for (bytes, words) in [
            (vec![b'#'; MAX_FILE as usize + 1], "is larger than 65536 bytes"),
            (vec![0xff], "cannot be read: "),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = file(&path).headers().await.unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
