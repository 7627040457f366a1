//! No command's end depends on what it can say: the real binary with outputs that are closed,
//! full or broken, and with arguments that are not UTF-8.
//!
//! It runs as a user who may change nothing of this machine; what root's commands do with
//! such outputs, the lab shows (scenario `output`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::geteuid;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_nlmfo");

/// Of nobody, and of nobody else.
const NOBODY: u32 = 65534;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Pipe,
    Closed,
    Full,
    Broken,
}

const ALL: [To; 4] = [To::Pipe, To::Closed, To::Full, To::Broken];

impl To {
    /// What a shell does with the descriptor.
    fn redirection(self, fd: u8) -> String {
        match self {
            To::Pipe | To::Broken => String::new(),
            To::Closed => format!("{fd}>&-"),
            To::Full => format!("{fd}>/dev/full"),
        }
    }

    fn stdio(self) -> Stdio {
        match self {
            To::Broken => {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.into()
            }
            _ => Stdio::piped(),
        }
    }
}

fn run(arguments: &[OsString], out: To, err: To) -> Output {
    let script = format!("exec \"$@\" {} {}", out.redirection(1), err.redirection(2));
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, "sh", BINARY])
        .args(arguments)
        .env_remove("NLMFO_CALLOUT")
        .stdin(Stdio::null())
        .stdout(out.stdio())
        .stderr(err.stdio());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().unwrap()
}

/// What the commands work with: a state directory with a client book, a directory like
/// statd's, and a recording.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files { folder };
        std::fs::create_dir(files.path("sm")).unwrap();
        let record = format!(
            "0100007f 000186b5 00000003 00000010 {:032x} 10.77.0.11 a\n",
            0
        );
        std::fs::write(files.path("sm/10.77.0.11"), record).unwrap();
        let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/watch.jsonl");
        std::fs::copy(recording, files.path("watch.jsonl")).unwrap();
        if geteuid().is_root() {
            for path in ["", "sm", "sm/10.77.0.11", "watch.jsonl"] {
                std::os::unix::fs::chown(files.path(path), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        files
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Words, where `@` begins the name of one of our files.
    fn words(&self, line: &str) -> Vec<OsString> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.path(name).into_os_string(),
            None => word.into(),
        };
        line.split_whitespace().map(word).collect()
    }
}

/// Whether a command is there to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lists,
    Does,
}

/// Every command, with the status that it ends with when it can say what it wants to.
const COMMANDS: &[(&str, Kind, i32)] = &[
    ("--help", Kind::Lists, 0),
    ("--version", Kind::Lists, 0),
    ("failover --help", Kind::Lists, 0),
    ("", Kind::Does, 2),
    ("nonsense", Kind::Does, 2),
    ("locks --vip nonsense", Kind::Does, 2),
    (
        "clients --import @sm --vip 10.77.0.1 --state-dir @state",
        Kind::Does,
        0,
    ),
    ("clients --book --state-dir @state", Kind::Lists, 0),
    ("clients --book --json --state-dir @state", Kind::Lists, 0),
    (
        "clients --export @exported --vip 10.77.0.1 --state-dir @state",
        Kind::Does,
        0,
    ),
    (
        "ha-callout --state-dir @state del-client 10.77.0.11 a",
        Kind::Lists,
        0,
    ),
    ("watch --replay @watch.jsonl --once", Kind::Lists, 0),
    ("watch --replay @sm/10.77.0.11 --once", Kind::Does, 1),
    ("probe --list", Kind::Lists, 0),
    ("probe --only nonsense", Kind::Does, 2),
    // Root's.
    ("check", Kind::Does, 1),
    ("locks --json", Kind::Does, 1),
    ("failover --vip 10.77.0.1", Kind::Does, 1),
    ("failover --vip 10.77.0.1 --to b", Kind::Does, 1),
    ("grace --list", Kind::Does, 1),
    ("notify --vip 10.77.0.1", Kind::Does, 1),
    ("serve", Kind::Does, 1),
    ("watch --once", Kind::Does, 1),
    ("probe", Kind::Does, 1),
    ("cleanup", Kind::Does, 1),
];

#[test]
fn the_status_is_of_what_was_done_whatever_becomes_of_the_words() {
    let files = Files::new();
    for &(line, kind, status) in COMMANDS {
        let words = files.words(line);
        for out in ALL {
            for err in ALL {
                let ended = run(&words, out, err);
                let expected = match (kind, out) {
                    // Not all of the list was written.
                    (Kind::Lists, To::Full) => 1,
                    _ => status,
                };
                let said = String::from_utf8_lossy(&ended.stderr);
                assert_eq!(
                    ended.status.code(),
                    Some(expected),
                    "nlmfo {line}, stdout {out:?}, stderr {err:?}: {said}"
                );
                if kind == Kind::Lists && err == To::Pipe {
                    let sentence =
                        "nlmfo: cannot write to standard output: No space left on device";
                    let is_said = said.contains(sentence);
                    assert_eq!(is_said, out == To::Full, "nlmfo {line}, {out:?}: {said:?}");
                    let is_quiet = said.is_empty() || out == To::Full;
                    assert!(is_quiet, "nlmfo {line}, {out:?}: {said:?}");
                }
            }
        }
    }
}

/// The word with a byte that is no UTF-8.
fn odd(word: &str) -> OsString {
    let mut bytes = word.as_bytes().to_vec();
    bytes.extend(b"caf\xe9");
    OsStr::from_bytes(&bytes).to_owned()
}

#[test]
fn a_file_may_have_any_name() {
    let files = Files::new();
    let odd_recording = files.path(odd(""));
    std::fs::copy(files.path("watch.jsonl"), &odd_recording).unwrap();
    let odd_folder = files.path(odd("state-"));
    std::fs::create_dir(&odd_folder).unwrap();
    if geteuid().is_root() {
        std::os::unix::fs::chown(&odd_folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let (recording, folder) = (odd_recording.into_os_string(), odd_folder.into_os_string());
    let word = |text: &str| OsString::from(text);
    let words = |line: &str, last: &OsString| {
        let mut words = files.words(line);
        words.push(last.clone());
        words
    };
    let import = words("clients --import @sm --vip 10.77.0.1 --state-dir", &folder);
    for (arguments, status) in [
        (words("watch --once --replay", &recording), 0),
        (import, 0),
        (words("clients --book --state-dir", &folder), 0),
        // Root's, who is asked for after the arguments are understood.
        (words("failover --vip 10.77.0.1 --record", &recording), 1),
        (
            words(
                "failover --vip 10.77.0.1 --phase takeover --expect",
                &recording,
            ),
            1,
        ),
        (
            words("failover --vip 10.77.0.1 --to b --hand-over", &recording),
            1,
        ),
        (
            words("failover --vip 10.77.0.1 --to b --remote-nlmfo", &recording),
            1,
        ),
        (
            words("failover --vip 10.77.0.1 --to b --rsh", &recording),
            1,
        ),
        (words("notify --vip 10.77.0.1 --record", &recording), 1),
        (words("probe --baseline", &recording), 1),
        (
            words(
                "grace --for 9s --vip 10.77.0.1 --scope filesystem --filesystem",
                &folder,
            ),
            1,
        ),
        // No name of a file: a wrong argument.
        (vec![odd("x")], 2),
        (vec![word("locks"), word("--vip"), odd("10.77.0.1")], 2),
        (
            vec![
                word("notify"),
                word("--vip"),
                word("10.77.0.1"),
                word("--name"),
                odd("x"),
            ],
            2,
        ),
    ] {
        for to in [To::Pipe, To::Full] {
            let ended = run(&arguments, To::Pipe, to);
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(status), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn what_others_wrote_reaches_no_terminal_raw() {
    let files = Files::new();
    let evil = "\u{1b}[2J\u{9b}\n\u{2713} 10.77.0.1: confirmed";
    let line = serde_json::json!({ "schema": evil }).to_string();
    std::fs::write(files.path("evil"), format!("{line}\n")).unwrap();
    let large = serde_json::json!({ "schema": "nlmfo.watch/1", "at": "x".repeat(5 << 20) });
    std::fs::write(files.path("large"), format!("{large}\n")).unwrap();
    for name in ["evil", "large", "\u{1b}[31m\n\u{2713} evil"] {
        let mut arguments = files.words("watch --once --replay");
        arguments.push(files.path(name).into_os_string());
        let ended = run(&arguments, To::Pipe, To::Pipe);
        assert_eq!(ended.status.code(), Some(1), "{name:?}");
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(!said.contains(['\u{1b}', '\u{9b}']), "{said:?}");
        let is_ours = |line: &str| line.starts_with("nlmfo: ") || line.starts_with("    ");
        assert!(said.lines().all(is_ours), "{said:?}");
        assert!(said.len() < 4096, "{} bytes are said", said.len());
    }
}
