//! nfsd's control files, `/proc/fs/nfsd`, of this network namespace.
//!
//! Their answers end in a NUL byte on some kernels (6.1 to 7.3), and every write
//! is one command: a success says that the command was understood, never that
//! anything was released.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{connections, exports};

pub const ROOT: &str = "/proc/fs/nfsd";

/// `NFS3_FHSIZE`, the longest handle of NFSv3.
const MAX_HANDLE: usize = 64;

/// Why nfsd's files cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NfsdError {
    #[error(
        "{0} does not exist: nfsd is not loaded or its filesystem is not mounted (`modprobe nfsd`, \
         then `mount -t nfsd nfsd {ROOT}`)"
    )]
    NotMounted(PathBuf),
    /// Before 6.19 `unlock_filesystem` crashes a kernel whose nfsd is stopped.
    #[error(
        "did not write to {0}: nfsd is stopped in this network namespace (`threads` is 0); start it \
         first (`systemctl start nfs-server`)"
    )]
    Stopped(PathBuf),
    #[error("this kernel has no {0}")]
    Absent(PathBuf),
    #[error("{folder} is not exported here (`exportfs -v` lists the exports)")]
    NotExported { folder: PathBuf },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} contains {text:?}, which nlmfo does not understand")]
    Unexpected { path: PathBuf, text: String },
    #[error("the kernel refused {text:?} written to {path}")]
    Refused {
        path: PathBuf,
        text: String,
        source: io::Error,
    },
}

/// A file that takes commands about locks or grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Releases the locks taken through a server address, in all network namespaces.
    UnlockIp,
    /// Releases all locks on a filesystem, named by a path on it.
    UnlockFilesystem,
    /// Ends nfsd's own (NFSv4) grace period.
    EndGraceV4,
    /// Per-address release, in kernels patched with the RFC of lock failover.
    NlmUnlock,
    /// Per-address grace, in the same kernels.
    NlmSetIpGrace,
}

impl Control {
    fn file(self) -> &'static str {
        match self {
            Control::UnlockIp => "unlock_ip",
            Control::UnlockFilesystem => "unlock_filesystem",
            Control::EndGraceV4 => "v4_end_grace",
            Control::NlmUnlock => "nlm_unlock",
            Control::NlmSetIpGrace => "nlm_set_ip_grace",
        }
    }
}

/// Identifies the loaded nfsd module, as [`super::lockd::incarnation`] does for lockd.
pub fn incarnation() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let module = fs::metadata("/sys/module/nfsd");
    module.ok().map(|folder| folder.ino())
}

/// Whether nfsd serves in this network namespace, as far as its files tell.
pub fn runs() -> bool {
    let threads = Nfsd::mounted().and_then(|nfsd| nfsd.threads());
    threads.is_ok_and(|threads| threads > 0)
}

/// What `versions` says, as `+3 +4 -4.0 +4.1 +4.2`: `+4` stands for 4.0 too, unless there is a
/// `-4.0` (`nfsd_print_version_support`, fs/nfsd/nfsctl.c).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions(String);

impl Versions {
    pub fn has_v3(&self) -> bool {
        self.has("+3")
    }

    pub fn has_v4(&self, minor: u32) -> bool {
        match minor {
            0 => self.has("+4") && !self.has("-4.0"),
            minor => self.has(&format!("+4.{minor}")),
        }
    }

    fn has(&self, word: &str) -> bool {
        self.0.split_ascii_whitespace().any(|other| other == word)
    }
}

impl From<&str> for Versions {
    fn from(text: &str) -> Self {
        Versions(text.to_owned())
    }
}

/// Mounts nfsd's files, those of this thread's network namespace.
pub fn mount() -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    let nothing = None::<&str>;
    Ok(mount(
        Some("nfsd"),
        ROOT,
        Some("nfsd"),
        MsFlags::empty(),
        nothing,
    )?)
}

/// nfsd's mounted filesystem.
#[derive(Clone, Debug)]
pub struct Nfsd {
    root: PathBuf,
}

impl Nfsd {
    pub fn mounted() -> Result<Self, NfsdError> {
        Self::at(Path::new(ROOT))
    }

    fn at(root: &Path) -> Result<Self, NfsdError> {
        // The directory alone is there as soon as the module is loaded.
        match root.join("threads").exists() {
            true => Ok(Nfsd {
                root: root.to_owned(),
            }),
            false => Err(NfsdError::NotMounted(root.to_owned())),
        }
    }

    pub fn path(&self, control: Control) -> PathBuf {
        self.root.join(control.file())
    }

    pub fn has(&self, control: Control) -> bool {
        self.path(control).exists()
    }

    /// Server threads of this network namespace; 0 means stopped.
    pub fn threads(&self) -> Result<u32, NfsdError> {
        let path = self.root.join("threads");
        let text = self.read("threads")?;
        text.parse()
            .map_err(|_| NfsdError::Unexpected { path, text })
    }

    /// Whether NFSv3 is served, by a line like `+2 +3 -4 -4.0`; a stopped server
    /// may have an empty one.
    pub fn serves_v3(&self) -> Result<bool, NfsdError> {
        Ok(self.versions()?.has_v3())
    }

    /// The lease time: how long an NFSv4 client keeps its state without renewing it.
    pub fn lease(&self) -> Result<Duration, NfsdError> {
        let path = self.root.join("nfsv4leasetime");
        let text = self.read("nfsv4leasetime")?;
        match text.parse() {
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => Err(NfsdError::Unexpected { path, text }),
        }
    }

    /// Whether nfsd's own grace period is over. It denies NLM locks too.
    pub fn v4_grace_ended(&self) -> Result<bool, NfsdError> {
        Ok(self.read(Control::EndGraceV4.file())? == "Y")
    }

    /// Stops all threads, as `rpc.nfsd 0` does, and returns when they have ended.
    pub fn stop(&self) -> Result<(), NfsdError> {
        let path = self.root.join("threads");
        fs::write(&path, "0\n").map_err(|source| refused(&path, b"0", source))
    }

    /// Ends nfsd's own grace period. The kernel refuses it until client tracking has started.
    pub fn end_v4_grace(&self) -> Result<(), NfsdError> {
        self.write(Control::EndGraceV4, b"Y\n")
    }

    /// The versions that are served; a stopped server may have none.
    pub fn versions(&self) -> Result<Versions, NfsdError> {
        Ok(Versions(self.read("versions")?))
    }

    /// The transports and ports that it listens on, each once: `tcp 2049`.
    pub fn ports(&self) -> Result<BTreeSet<String>, NfsdError> {
        let text = self.read("portlist")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The TCP ports that it listens on.
    pub fn tcp_ports(&self) -> Result<BTreeSet<u16>, NfsdError> {
        let ports = self.ports()?.into_iter();
        Ok(ports
            .filter_map(|line| line.strip_prefix("tcp ")?.trim().parse().ok())
            .collect())
    }

    /// The number of NFSv4 clients.
    pub fn clients(&self) -> Result<usize, NfsdError> {
        let path = self.root.join("clients");
        let entries = fs::read_dir(&path).map_err(|source| NfsdError::Read { path, source })?;
        Ok(entries.count())
    }

    /// Sets how long clients keep their state without renewing it, and how long a server that
    /// starts waits for them. Of a stopped server.
    pub fn set_times(&self, lease: Duration, grace: Duration) -> Result<(), NfsdError> {
        for (file, time) in [("nfsv4leasetime", lease), ("nfsv4gracetime", grace)] {
            let (path, text) = (self.root.join(file), time.as_secs().to_string());
            fs::write(&path, &text).map_err(|source| refused(&path, text.as_bytes(), source))?;
        }
        Ok(())
    }

    /// Writes an address to [`Control::UnlockIp`], [`Control::NlmUnlock`] or
    /// [`Control::NlmSetIpGrace`]. Up to 7.3 `unlock_ip` refuses IPv6 addresses
    /// with EINVAL, because it counts the newline that it insists on.
    pub fn write_address(&self, control: Control, vip: IpAddr) -> Result<(), NfsdError> {
        self.write(control, line(vip).as_bytes())
    }

    /// [`Control::UnlockIp`] for a server without threads, whose locks lockd may still have.
    /// IPv6 addresses are refused, as by [`Nfsd::write_address`].
    pub fn unlock_ip_of_stopped(&self, vip: IpAddr) -> Result<(), NfsdError> {
        self.put(Control::UnlockIp, line(vip).as_bytes())
    }

    /// Releases all locks on the filesystem that holds `path`; since 6.9 this
    /// revokes its NFSv4 state too.
    pub fn unlock_filesystem(&self, path: &Path) -> Result<(), NfsdError> {
        let mut line = quote(path);
        line.push('\n');
        self.write(Control::UnlockFilesystem, line.as_bytes())
    }

    /// The file handle of an exported directory (`write_filehandle` in fs/nfsd/nfsctl.c,
    /// 6.1 to 7.3), requested for a client that it is exported to.
    pub fn root_handle(&self, folder: &Path) -> Result<Vec<u8>, NfsdError> {
        let path = self.root.join("filehandle");
        let client = exports::client_of(folder).ok_or_else(|| NfsdError::NotExported {
            folder: folder.to_owned(),
        })?;
        let command = format!("{} {} {MAX_HANDLE}\n", client, quote(folder));
        let refused = |source| refused(&path, command.as_bytes(), source);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(refused)?;
        // The answer to a command is read from the descriptor that wrote it.
        file.write_all(command.as_bytes()).map_err(refused)?;
        let mut answer = Vec::new();
        file.read_to_end(&mut answer).map_err(refused)?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        unhex(&text).ok_or(NfsdError::Unexpected { path, text })
    }

    fn write(&self, control: Control, command: &[u8]) -> Result<(), NfsdError> {
        if self.threads()? == 0 {
            return Err(NfsdError::Stopped(self.path(control)));
        }
        self.put(control, command)
    }

    fn put(&self, control: Control, command: &[u8]) -> Result<(), NfsdError> {
        let path = self.path(control);
        let mut file = match fs::OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NfsdError::Absent(path));
            }
            other => other.map_err(|source| refused(&path, command, source))?,
        };
        // One write call is one command, and the kernel takes it whole or not at all.
        file.write_all(command)
            .map_err(|source| refused(&path, command, source))
    }

    fn read(&self, file: &str) -> Result<String, NfsdError> {
        let path = self.root.join(file);
        read_control(&path).map_err(|source| NfsdError::Read { path, source })
    }
}

/// An address as a command.
fn line(vip: IpAddr) -> String {
    format!("{}\n", vip.to_canonical())
}

/// `\x` and hexadecimal digits, as the kernel's `qword_addhex()` (net/sunrpc/cache.c)
/// writes bytes.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches(['\0', '\n']).strip_prefix("\\x")?;
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect()
}

fn refused(path: &Path, command: &[u8], source: io::Error) -> NfsdError {
    let text = String::from_utf8_lossy(command).trim_end().to_owned();
    NfsdError::Refused {
        path: path.to_owned(),
        text,
        source,
    }
}

/// The file's text without the newline and NUL bytes at its end.
pub(super) fn read_control(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes)
        .trim_end_matches(['\0', '\n'])
        .to_owned())
}

/// A path in one word: the kernel's `qword_get()` (net/sunrpc/cache.c) ends a
/// word at a blank and reads `\ooo` as a byte.
fn quote(path: &Path) -> String {
    let mut word = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | 0x80.. => {
                write!(word, "\\{byte:03o}").expect("writing to a String");
            }
            _ => word.push(char::from(byte)),
        }
    }
    word
}

/// The clients of established TCP connections to port 2049, in this thread's network namespace.
///
/// # Errors
/// If the kernel's table of connections cannot be read.
pub fn peers() -> io::Result<BTreeSet<IpAddr>> {
    const NFS: u16 = 2049;
    let all = connections::established(|_| true)?.into_iter();
    let nfs = all.filter(|connection| connection.port == NFS);
    Ok(nfs.map(|connection| connection.client).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nfsd(files: &[(&str, &str)]) -> (tempfile::TempDir, Nfsd) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let nfsd = Nfsd::at(folder.path()).unwrap();
        (folder, nfsd)
    }

    #[test]
    fn an_address_is_written_with_a_newline() {
        let (folder, nfsd) = nfsd(&[("threads", "8\n"), ("unlock_ip", "")]);
        nfsd.write_address(Control::UnlockIp, "::ffff:10.77.0.1".parse().unwrap())
            .unwrap();
        assert_eq!(
            fs::read(folder.path().join("unlock_ip")).unwrap(),
            b"10.77.0.1\n"
        );
    }

    #[test]
    fn the_ports_of_tcp_are_numbers() {
        let ports = "rdma 20049\ntcp 2049\nudp 2049\ntcp 20049\n";
        let (_folder, nfsd) = nfsd(&[("threads", "8\n"), ("portlist", ports)]);
        assert_eq!(nfsd.tcp_ports().unwrap(), [2049, 20049].into());
    }

    #[test]
    fn nothing_is_written_while_nfsd_is_stopped() {
        let (folder, nfsd) = nfsd(&[("threads", "0\n"), ("unlock_filesystem", "")]);
        let error = nfsd.unlock_filesystem(Path::new("/srv")).unwrap_err();
        assert!(matches!(error, NfsdError::Stopped(_)), "{error}");
        assert_eq!(
            fs::read(folder.path().join("unlock_filesystem")).unwrap(),
            b""
        );
    }

    #[test]
    fn a_path_is_one_word() {
        let (folder, nfsd) = nfsd(&[("threads", "8\n"), ("unlock_filesystem", "")]);
        nfsd.unlock_filesystem(Path::new("/srv/my data\\x"))
            .unwrap();
        let written = fs::read(folder.path().join("unlock_filesystem")).unwrap();
        assert_eq!(written, b"/srv/my\\040data\\134x\n");
    }

    #[test]
    fn a_handle_is_hexadecimal() {
        assert_eq!(unhex("\\x01000600ff\n"), Some(vec![1, 0, 6, 0, 0xff]));
        for wrong in ["", "0100", "\\x010", "\\x0g"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn answers_may_end_in_a_nul_byte() {
        let (_folder, nfsd) = nfsd(&[
            ("threads", "8\n"),
            ("v4_end_grace", "N\n\0"),
            ("versions", "-2 +3 +4\n"),
        ]);
        assert!(!nfsd.v4_grace_ended().unwrap());
        assert!(nfsd.serves_v3().unwrap());
        assert!(!nfsd.has(Control::NlmUnlock));
    }

    #[test]
    fn a_file_that_the_kernel_lacks_is_told_from_a_refusal() {
        let (_folder, nfsd) = nfsd(&[("threads", "8\n")]);
        let vip = "10.77.0.1".parse().unwrap();
        let error = nfsd.write_address(Control::NlmUnlock, vip).unwrap_err();
        assert!(matches!(error, NfsdError::Absent(_)), "{error}");
    }

    #[test]
    fn a_folder_without_its_files_is_not_mounted() {
        let folder = tempfile::tempdir().unwrap();
        let error = Nfsd::at(folder.path()).unwrap_err();
        assert!(error.to_string().contains("mount -t nfsd"), "{error}");
    }
}
