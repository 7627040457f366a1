//! The C library that a program needs, from its symbols' versions.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    elf::{EM_AARCH64, EM_X86_64, FileHeader64},
    endian::LittleEndian,
    read::elf::FileHeader as _,
};

use crate::arch::Arch;

/// A version of the GNU C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glibc(pub u32, pub u32);

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What a program runs on, and what it loads.
#[derive(Debug, PartialEq, Eq)]
pub struct Needs {
    pub arch: Arch,
    /// The oldest C library with all of its symbols.
    pub glibc: Glibc,
    /// Shared libraries, by their names.
    pub libraries: Vec<String>,
}

impl Needs {
    pub fn of(program: &Path) -> Result<Self> {
        let data = fs::read(program).with_context(|| format!("read {}", program.display()))?;
        read(&data).with_context(|| format!("read the symbol versions of {}", program.display()))
    }
}

fn read(data: &[u8]) -> Result<Needs> {
    let header = FileHeader64::<LittleEndian>::parse(data)?;
    let endian = header.endian()?;
    let arch = match header.e_machine(endian) {
        EM_X86_64 => Arch::Amd64,
        EM_AARCH64 => Arch::Arm64,
        other => bail!("it is for another architecture ({other})"),
    };
    let sections = header.sections(endian, data)?;
    let mut glibc = Glibc(2, 0);
    if let Some((mut needs, strings)) = sections.gnu_verneed(endian, data)? {
        let strings = sections.strings(endian, data, strings)?;
        while let Some((_, mut versions)) = needs.next()? {
            while let Some(version) = versions.next()? {
                let name = String::from_utf8_lossy(version.name(endian, strings)?);
                glibc = glibc.max(parse(&name).unwrap_or(glibc));
            }
        }
    }
    let mut libraries = Vec::new();
    if let Some((entries, strings)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, strings)?;
        for entry in entries {
            if entry.d_tag.get(endian) == object::elf::DT_NEEDED {
                let offset = u32::try_from(entry.d_val.get(endian))?;
                let name = strings
                    .get(offset)
                    .ok()
                    .context("a library without a name")?;
                libraries.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    ensure!(!libraries.is_empty(), "it is linked statically");
    Ok(Needs {
        arch,
        glibc,
        libraries,
    })
}

/// `GLIBC_2.28`, or `GLIBC_2.2.5`.
fn parse(version: &str) -> Option<Glibc> {
    let mut parts = version.strip_prefix("GLIBC_")?.split('.');
    let major = parts.next()?.parse().ok()?;
    Some(Glibc(major, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_the_c_library_that_it_runs_with_or_an_older_one() -> Result<()> {
        let needs = Needs::of(&std::env::current_exe()?)?;
        assert!(
            needs.glibc >= Glibc(2, 14) && needs.glibc < Glibc(3, 0),
            "{needs:?}"
        );
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"));
        Ok(())
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse("GLIBC_2.2.5"), Some(Glibc(2, 2)));
        assert!(parse("GLIBC_2.28") > parse("GLIBC_2.4"));
        for other in ["GCC_3.0", "GLIBC_PRIVATE", "GLIBC_ABI_DT_RELR"] {
            assert_eq!(parse(other), None);
        }
    }
}
