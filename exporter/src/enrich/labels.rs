//! The labels of the pod, from the file that Kubernetes' downward API keeps of `metadata.labels`.
//!
//! The kubelet writes a new file and lets a link point to it, so another inode says that there is news.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

/// The file is looked at so often.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Bytes that are read of it.
const MAX_BYTES: usize = 65_536;

/// Labels that are taken from it: each becomes an attribute of each resource.
const MAX_LABELS: usize = 128;

/// A pod's labels by key.
pub type Labels = BTreeMap<String, String>;

/// The labels of the moment, for those who make resources of them.
pub type LabelsReceiver = watch::Receiver<Arc<Labels>>;

/// The file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "key `resource.labels_file`: {}: {cause}; name the file that a downwardAPI volume makes of \
     metadata.labels, or leave the key empty",
    path.display()
)]
pub struct LabelsError {
    path: PathBuf,
    cause: std::io::Error,
}

/// Reads the labels, and goes on reading them when they change for as long as somebody receives them.
///
/// # Errors
/// [`LabelsError`], when the file cannot be read now. Later on, what was read stays.
pub fn start(path: PathBuf) -> Result<LabelsReceiver, LabelsError> {
    let mut file = LabelsFile { path, read: None, is_failing: false };
    let labels = file.read().map_err(|cause| LabelsError { path: file.path.clone(), cause })?;
    let (send, receive) = watch::channel(Arc::new(labels));
    tokio::spawn(keep(file, send));
    Ok(receive)
}

/// Off the data path, on a thread that may wait.
async fn keep(mut file: LabelsFile, send: watch::Sender<Arc<Labels>>) {
    let mut checks = tokio::time::interval(CHECK_EVERY);
    // The first comes at once.
    checks.tick().await;
    loop {
        tokio::select! {
            _ = checks.tick() => {}
            () = send.closed() => return,
        }
        let check = tokio::task::spawn_blocking(move || (file.check(), file));
        let Ok((news, back)) = check.await else { return };
        file = back;
        if let Some(labels) = news {
            info!("{}: {} labels of the pod", file.path.display(), labels.len());
            send.send_replace(Arc::new(labels));
        }
    }
}

/// Tells one version of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl Version {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            bytes: metadata.size(),
        }
    }
}

#[derive(Debug)]
struct LabelsFile {
    path: PathBuf,
    /// The version that was read.
    read: Option<Version>,
    /// It was said that it cannot be read.
    is_failing: bool,
}

impl LabelsFile {
    /// The labels if the file is another than the one that was read. One that cannot be read is told once.
    fn check(&mut self) -> Option<Labels> {
        let news = std::fs::metadata(&self.path).and_then(|metadata| {
            let is_new = self.read != Some(Version::of(&metadata));
            is_new.then(|| self.read()).transpose()
        });
        match news {
            Ok(news) => {
                self.is_failing = false;
                news
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let path = self.path.display();
                    warn!("resource.labels_file {path}: {error}; the labels stay as they were");
                }
                None
            }
        }
    }

    fn read(&mut self) -> std::io::Result<Labels> {
        let file = std::fs::File::open(&self.path)?;
        // Of what is read, and not of what the link points to by now.
        let version = Version::of(&file.metadata()?);
        let mut bytes = Vec::new();
        file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        self.read = Some(version);
        let (labels, problems) = parse(&bytes);
        for problem in problems {
            warn!("resource.labels_file {}: {problem}", self.path.display());
        }
        Ok(labels)
    }
}

/// Lines of `key="value"`, the value as Go quotes it (kubernetes: pkg/fieldpath, FormatMap; strconv.Quote).
/// The second are the problems, for the user: one of a kind.
fn parse(bytes: &[u8]) -> (Labels, Vec<String>) {
    let mut problems = Vec::new();
    let mut taken = bytes;
    if bytes.len() > MAX_BYTES {
        problems.push(format!("longer than {MAX_BYTES} bytes: what follows is left out"));
        let last = bytes[..MAX_BYTES].iter().rposition(|b| *b == b'\n');
        taken = &bytes[..last.unwrap_or(0)];
    }
    let mut labels = Labels::new();
    let (mut bad, mut too_many) = (Vec::new(), 0);
    for (n, line) in taken.split(|b| *b == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
        match label(line) {
            None => bad.push(n + 1),
            Some((key, _)) if labels.len() >= MAX_LABELS && !labels.contains_key(key) => {
                too_many += 1;
            }
            Some((key, value)) => {
                labels.insert(key.to_owned(), value);
            }
        }
    }
    if let Some(first) = bad.first() {
        let n = bad.len();
        problems.push(format!(
            "{n} line(s) left out that are no key=\"value\"; the first is line {first}"
        ));
    }
    if too_many > 0 {
        problems.push(format!("{too_many} label(s) left out past the first {MAX_LABELS}"));
    }
    (labels, problems)
}

fn label(line: &[u8]) -> Option<(&str, String)> {
    let (key, quoted) = str::from_utf8(line).ok()?.split_once('=')?;
    if key.is_empty() || key.contains(char::is_whitespace) {
        return None;
    }
    Some((key, unquote(quoted)?))
}

/// What Go's strconv.Quote made of it. Values of labels never need an escape; those of annotations,
/// which are written alike, do.
fn unquote(quoted: &str) -> Option<String> {
    let mut chars = quoted.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut bytes = Vec::new();
    while let Some(c) = chars.next() {
        let c = match c {
            '"' => return None,
            '\\' => match chars.next()? {
                c @ ('\\' | '"') => c,
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\x0b',
                // A byte, which need not be a character by itself.
                'x' => {
                    bytes.push(u8::try_from(hex(&mut chars, 2)?).ok()?);
                    continue;
                }
                'u' => char::from_u32(hex(&mut chars, 4)?)?,
                'U' => char::from_u32(hex(&mut chars, 8)?)?,
                _ => return None,
            },
            c => c,
        };
        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    String::from_utf8(bytes).ok()
}

fn hex(chars: &mut std::str::Chars<'_>, digits: u32) -> Option<u32> {
    (0..digits).try_fold(0_u32, |n, _| Some(n << 4 | chars.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn lines_are_read_as_the_kubelet_writes_them() {
        let text = b"app=\"web\"\napp.kubernetes.io/name=\"shop\"\nempty=\"\"\n\
            odd=\"a\\\"b\\\\c\\n\\t\\x41\\u00e4\\U0001f600\\xc3\\xa4 = d\"";
        let want = labels([
            ("app", "web"),
            ("app.kubernetes.io/name", "shop"),
            ("empty", ""),
            ("odd", "a\"b\\c\n\tA\u{e4}\u{1f600}\u{e4} = d"),
        ]);
        assert_eq!(parse(text), (want, Vec::new()));
        assert_eq!(parse(b""), (Labels::new(), Vec::new()));
    }

    #[test]
    fn bad_lines_are_left_out_and_told_as_one() {
        let bad: [&[u8]; 12] = [
            b"app",
            b"=\"web\"",
            b"app=web",
            b"app=\"web",
            b"app=\"",
            b"a b=\"c\"",
            b"a=\"b\"c\"",
            b"a=\"\\q\"",
            b"a=\"\\x4\"",
            b"a=\"\\ud800\"",
            b"a=\"\\xff\"",
            b"a=\"\xff\"",
        ];
        for line in bad {
            assert_eq!(label(line), None, "{}", line.escape_ascii());
        }
        let text = [b"first=\"1\"", bad.join(&b'\n').as_slice(), b"last=\"2\""].join(&b'\n');
        let (read, problems) = parse(&text);
        assert_eq!(read, labels([("first", "1"), ("last", "2")]));
        assert_eq!(
            problems,
            ["12 line(s) left out that are no key=\"value\"; the first is line 2"]
        );
    }

    #[test]
    fn what_is_too_much_is_left_out_and_told() {
        let line = |n: usize| format!("key{n:04}=\"{}\"\n", "v".repeat(50));
        let text: String = (0..MAX_LABELS + 3).map(line).collect();
        let (read, problems) = parse(text.as_bytes());
        assert_eq!(
            (read.len(), problems),
            (MAX_LABELS, vec!["3 label(s) left out past the first 128".into()])
        );
        // A line that is cut is no line.
        let text: String = (0..5).map(|n| format!("key{n}=\"{}\"\n", "v".repeat(15_000))).collect();
        let (read, problems) = parse(text.as_bytes());
        assert_eq!(read.len(), 4);
        assert_eq!(problems, ["longer than 65536 bytes: what follows is left out"]);
    }

    /// What the kubelet does: a new folder, and a link that changes over to it in one step.
    fn publish(folder: &Path, version: &str, text: &str) {
        std::fs::create_dir(folder.join(version)).unwrap();
        std::fs::write(folder.join(version).join("labels"), text).unwrap();
        std::os::unix::fs::symlink(version, folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    }

    #[test]
    fn only_another_file_is_news() {
        let folder = tempfile::tempdir().unwrap();
        publish(folder.path(), "..1", "app=\"one\"\n");
        let path = folder.path().join("labels");
        std::os::unix::fs::symlink("..data/labels", &path).unwrap();
        let mut file = LabelsFile { path, read: None, is_failing: false };
        assert_eq!(file.check(), Some(labels([("app", "one")])));
        assert_eq!(file.check(), None);
        publish(folder.path(), "..2", "app=\"two\"\n");
        assert_eq!(file.check(), Some(labels([("app", "two")])));
        // Gone for a while: nothing new, and what comes back as it was is no news either.
        std::fs::rename(folder.path().join("..data"), folder.path().join("away")).unwrap();
        assert_eq!((file.check(), file.is_failing), (None, true));
        std::fs::rename(folder.path().join("away"), folder.path().join("..data")).unwrap();
        assert_eq!((file.check(), file.is_failing), (None, false));
    }

    #[tokio::test(start_paused = true)]
    async fn changed_labels_are_received_until_nobody_wants_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("..data/labels");
        let error = start(path.clone()).unwrap_err().to_string();
        assert!(
            error.contains("`resource.labels_file`") && error.contains("..data/labels"),
            "{error}"
        );
        publish(folder.path(), "..1", "app=\"one\"\n");
        let mut receive = start(path).unwrap();
        assert_eq!(**receive.borrow_and_update(), labels([("app", "one")]));
        publish(folder.path(), "..2", "app=\"two\"\n");
        let before = tokio::time::Instant::now();
        receive.changed().await.unwrap();
        assert_eq!(before.elapsed().as_secs(), CHECK_EVERY.as_secs());
        assert_eq!(**receive.borrow_and_update(), labels([("app", "two")]));
        let tasks = tokio::runtime::Handle::current().metrics();
        assert_eq!(tasks.num_alive_tasks(), 1);
        drop(receive);
        tokio::task::yield_now().await;
        assert_eq!(tasks.num_alive_tasks(), 0);
    }
}
