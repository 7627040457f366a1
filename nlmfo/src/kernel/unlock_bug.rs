//! Detects whether this kernel's `unlock_ip` releases anything, without a release:
//! CVE-2026-93231, `nlmsvc_match_ip()` in fs/lockd/svcsubs.c.
//!
//! lockd's walk calls `match(host of a lock, the wanted address)`. From 2008 to the fix,
//! `nlmsvc_match_ip` took its two arguments the other way round and compared `h_srcaddr` of the
//! *address* with the *host*. Both versions have one prototype, so BTF cannot tell them apart, and
//! distributions backport the fix without a telling change of the release. Only the running code tells
//! them apart: from which of its arguments does the function read at the offset of
//! `nlm_host.h_srcaddr`? The bytes come from the running kernel's memory (`/proc/kcore`). A kernel live
//! patch leaves these bytes and redirects calls of the function, so nlmfo looks for live patches too.
//!
//! Why a disassembler (`x86_64`, `arm64`): nothing else shows the bug without releasing locks, and
//! `nlmfo check` runs on nodes in service. It says before a failover whether `unlock_ip` works or a
//! call for each client is needed, and the probe names the bug by evidence. A release does not depend
//! on it: it tries `unlock_ip` and checks the locks.

mod arm64;
mod x86_64;

use std::env;
use std::fs::File;
use std::io;
use std::path::Path;

use object::Endianness;
use object::read::ReadCache;
use object::read::elf::{ElfFile64, ProgramHeader};
use serde::Serialize;

use super::btf::Field;

const KCORE: &str = "/proc/kcore";
/// One directory for each live patch, in it one for each object ("vmlinux" or a
/// module), in it one for each function, `NAME,N`.
const LIVE_PATCHES: &str = "/sys/kernel/livepatch";
/// The function that has the bug, or the fix.
pub const FUNCTION: &str = "nlmsvc_match_ip";
/// Bytes of [`FUNCTION`] that are looked at: the comparison of the address
/// families, which comes first, lies within 32 on Debian's kernels.
pub const CODE_BYTES: usize = 128;

/// Size of a `struct sockaddr_in6`, the largest part of an address that is compared.
const SOCKADDR_BYTES: i64 = 28;

/// Whether this kernel's `unlock_ip` works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// `unlock_ip` reports success and releases nothing.
    Broken { proof: String },
    /// `unlock_ip` compares the right arguments.
    Fixed { proof: String },
    /// The code cannot be read or understood: only a release shows it.
    Unknown { reason: String },
}

/// Judges the code that runs now.
///
/// `address` is that of [`FUNCTION`], `srcaddr` where `nlm_host.h_srcaddr` lies.
pub fn judge_running(address: u64, srcaddr: Field) -> Verdict {
    let argument_reads = match env::consts::ARCH {
        "x86_64" => x86_64::argument_reads,
        "aarch64" => arm64::argument_reads,
        other => return unknown(format!("nlmfo cannot read code of {other}")),
    };
    if is_live_patched(Path::new(LIVE_PATCHES)) {
        return unknown(format!("a kernel live patch replaces {FUNCTION}"));
    }
    match read_kernel(Path::new(KCORE), address, CODE_BYTES) {
        Ok(code) => judge(&code, argument_reads, srcaddr),
        Err(error) => unknown(format!(
            "cannot read the code of {FUNCTION} from {KCORE}: {error}"
        )),
    }
}

/// Judges the first bytes of [`FUNCTION`], from wherever they were read.
fn judge(code: &[u8], argument_reads: fn(&[u8]) -> Vec<Read>, srcaddr: Field) -> Verdict {
    if code.iter().all(|&byte| byte == 0) {
        return unknown(format!("the code of {FUNCTION} reads as zeros"));
    }
    let reads = argument_reads(code);
    let within = |argument: usize, start: i64, len: i64| {
        reads
            .iter()
            .any(|r| r.argument == argument && (start..start + len).contains(&r.offset))
    };
    let is_host = |a| within(a, i64::from(srcaddr.offset), i64::from(srcaddr.size));
    let is_address = |a| within(a, 0, SOCKADDR_BYTES) && !is_host(a);
    let proof = |which: &str| {
        format!(
            "the running code of {FUNCTION} reads h_srcaddr (byte {}) from its {which} argument",
            srcaddr.offset
        )
    };
    if is_host(0) && is_address(1) {
        Verdict::Fixed {
            proof: proof("first"),
        }
    } else if is_host(1) && is_address(0) {
        Verdict::Broken {
            proof: proof("second"),
        }
    } else {
        unknown(format!("nlmfo does not understand the code of {FUNCTION}"))
    }
}

fn unknown(reason: String) -> Verdict {
    Verdict::Unknown { reason }
}

/// A read of memory through one of the function's two arguments.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    /// 0 or 1.
    argument: usize,
    /// Bytes from where the argument points to.
    offset: i64,
}

fn is_live_patched(patches: &Path) -> bool {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries(patches)
        .flat_map(|patch| entries(&patch.path()))
        .flat_map(|object| entries(&object.path()))
        .any(|function| {
            let name = function.file_name();
            name.to_string_lossy().split(',').next() == Some(FUNCTION)
        })
}

/// Reads the kernel's memory from its core file, an ELF file with one segment for
/// each range of addresses.
fn read_kernel(core: &Path, address: u64, len: usize) -> io::Result<Vec<u8>> {
    let invalid = |error: object::read::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let core = ReadCache::new(File::open(core)?);
    let elf: ElfFile64<Endianness, _> = ElfFile64::parse(&core).map_err(invalid)?;
    for segment in elf.elf_program_headers() {
        let start = segment.p_vaddr(elf.endian());
        let within = address.checked_sub(start);
        let Some(within) = within.filter(|&w| w < segment.p_filesz(elf.endian())) else {
            continue;
        };
        let at = segment.p_offset(elf.endian()) + within;
        use object::read::ReadRef;
        let bytes = (&core).read_bytes_at(at, len as u64);
        return bytes.map(<[u8]>::to_vec).map_err(|()| {
            io::Error::other(format!(
                "address {address:#x} is in a segment, but cannot be read"
            ))
        });
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no segment contains {address:#x}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nlm_host.h_srcaddr` in all of these kernels.
    pub(super) const SRCADDR: Field = Field {
        offset: 152,
        size: 128,
        elements: None,
    };

    /// The first 72 bytes of `nlmsvc_match_ip` in `lockd.ko` of Debian's
    /// linux-image-*-cloud-amd64 (from 7.2 linux-modules-*), before relocation.
    const BROKEN: [(&str, &str); 3] = [
        (
            "6.1.176-1",
            "e8000000000fb7869800000031d2663b07740789d0e900000000554889fd4883ec08\
             6683f802744a6683f80a7538488b86a0000000488b8ea80000004833470848334f104809c875",
        ),
        (
            "6.12.107-1~deb12u1",
            "f30f1efae8000000000fb7869800000031d2663b07740789d0e900000000554889fd4883ec08\
             6683f802744a6683f80a7538488b86a0000000488b8ea80000004833470848334f10",
        ),
        (
            "6.18.15",
            "f30f1efae8000000000fb7869800000031d2663b07740789d0e900000000554889fd4883ec08\
             6683f802744a6683f80a7538488b86a0000000488b8ea80000004833470848334f10",
        ),
    ];
    const FIXED: [(&str, &str); 4] = [
        (
            "6.1.192-2",
            "e8000000000fb7879800000031d2663b06740789d0e900000000534889fb4883ec08\
             6683f802744a6683f80a7538488b87a0000000488b8fa8000000488934244833460848334e10",
        ),
        (
            "6.12.117-1~deb12u1",
            "f30f1efae8000000000fb7879800000031d2663b06740789d0e900000000534889fb4883ec08\
             6683f802744a6683f80a7538488b87a0000000488b8fa80000004889342448334608",
        ),
        (
            "7.2.12",
            "f30f1efae8000000000fb7879800000031d2663b06740789d0e900000000534889fb4883ec08\
             6683f802744a6683f80a7538488b87a0000000488b8fa80000004889342448334608",
        ),
        (
            "7.3.4",
            "f30f1efae8000000000fb7879800000031d2663b06740789d0e900000000534889fb4883ec08\
             6683f802744a6683f80a7538488b87a0000000488b8fa80000004889342448334608",
        ),
    ];

    pub(super) fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
        digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    /// As it runs: the call of the tracer is a nop, and the return thunk a `ret`.
    fn patched(code: &[u8]) -> Vec<u8> {
        let mut code = code.to_vec();
        let call = code.iter().position(|&b| b == 0xe8).unwrap();
        code[call..call + 5].copy_from_slice(&[0x0f, 0x1f, 0x44, 0, 0]);
        let jump = code.iter().position(|&b| b == 0xe9).unwrap();
        code[jump..jump + 5].copy_from_slice(&[0xc3, 0xcc, 0xcc, 0xcc, 0xcc]);
        code
    }

    #[test]
    fn tells_broken_kernels() {
        for (kernel, hex) in BROKEN {
            for code in [bytes(hex), patched(&bytes(hex))] {
                let verdict = judge(&code, x86_64::argument_reads, SRCADDR);
                assert!(
                    matches!(verdict, Verdict::Broken { .. }),
                    "{kernel}: {verdict:?}"
                );
            }
        }
    }

    #[test]
    fn tells_fixed_kernels() {
        for (kernel, hex) in FIXED {
            for code in [bytes(hex), patched(&bytes(hex))] {
                let verdict = judge(&code, x86_64::argument_reads, SRCADDR);
                assert!(
                    matches!(verdict, Verdict::Fixed { .. }),
                    "{kernel}: {verdict:?}"
                );
            }
        }
    }

    #[test]
    fn follows_arguments_through_registers_and_calls() {
        // push rbx; mov rbx,rsi; mov rbp,rdi; call +0; add rbx,0x98;
        // movzx eax,word [rbx]; cmp ax,[rbp]; ret
        let code = bytes("534889f34889fde8000000004881c3980000000fb703663b4500c3");
        assert!(matches!(
            judge(&code, x86_64::argument_reads, SRCADDR),
            Verdict::Broken { .. }
        ));
    }

    #[test]
    fn a_register_that_was_overwritten_is_no_argument() {
        // xor esi,esi; mov rdi,[rax]; movzx eax,word [rdi+0x98]; cmp ax,[rsi]; ret
        let code = bytes("31f6488b380fb78798000000663b06c3");
        assert!(x86_64::argument_reads(&code).is_empty());
        assert!(matches!(
            judge(&code, x86_64::argument_reads, SRCADDR),
            Verdict::Unknown { .. }
        ));
    }

    #[test]
    fn another_layout_is_not_guessed_at() {
        let moved = Field {
            offset: 400,
            ..SRCADDR
        };
        assert!(matches!(
            judge(&bytes(FIXED[0].1), x86_64::argument_reads, moved),
            Verdict::Unknown { .. }
        ));
        assert!(matches!(
            judge(&[0; 128], x86_64::argument_reads, SRCADDR),
            Verdict::Unknown { .. }
        ));
        assert!(matches!(
            judge(&[], x86_64::argument_reads, SRCADDR),
            Verdict::Unknown { .. }
        ));
    }

    #[test]
    fn a_live_patch_of_the_function_is_seen() {
        let patches = tempfile::tempdir().unwrap();
        assert!(!is_live_patched(patches.path()));
        assert!(!is_live_patched(&patches.path().join("absent")));
        std::fs::create_dir_all(patches.path().join("fix/lockd/nlmsvc_match_sb,1")).unwrap();
        assert!(!is_live_patched(patches.path()));
        std::fs::create_dir_all(patches.path().join("fix/lockd/nlmsvc_match_ip,1")).unwrap();
        assert!(is_live_patched(patches.path()));
    }

    #[test]
    fn reads_an_address_from_a_core_file() {
        let exe = std::fs::read("/proc/self/exe").unwrap();
        let elf: ElfFile64<Endianness, _> = ElfFile64::parse(&exe[..]).unwrap();
        let header = elf
            .elf_program_headers()
            .iter()
            .find(|h| h.p_filesz(elf.endian()) > 64);
        let header = header.unwrap();
        let (vaddr, offset) = (
            header.p_vaddr(elf.endian()),
            header.p_offset(elf.endian()) as usize,
        );
        let read = read_kernel(Path::new("/proc/self/exe"), vaddr + 8, 32).unwrap();
        assert_eq!(read, exe[offset + 8..offset + 40]);
        assert!(read_kernel(Path::new("/proc/self/exe"), u64::MAX - 64, 32).is_err());
    }
}
