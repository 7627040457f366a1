//! Reading what apt prints, and writing what it reads.

use super::{Offer, Pin};
use crate::arch::Arch;

/// Lines of `package | version | address suite/component arch Packages`.
pub(super) fn parse_madison(out: &str) -> Vec<Offer> {
    out.lines()
        .filter_map(|line| {
            let mut fields = line.split('|').map(str::trim);
            let (package, version, origin) = (fields.next()?, fields.next()?, fields.next()?);
            let (suite, _) = origin.split_whitespace().nth(1)?.split_once('/')?;
            Some(Offer {
                package: package.to_owned(),
                version: version.to_owned(),
                suite: suite.parse().ok()?,
            })
        })
        .collect()
}

/// Lines of `Inst package (version origin [arch])`.
pub(super) fn parse_simulation(out: &str) -> Vec<Pin> {
    out.lines()
        .filter_map(|line| {
            let (package, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
            Some(Pin {
                package: package.to_owned(),
                version: rest.split_whitespace().next()?.to_owned(),
            })
        })
        .collect()
}

/// A dpkg status file in which these packages are installed, newer than any.
pub(super) fn status_of(provided: &[&str], arch: Arch) -> String {
    provided
        .iter()
        .map(|package| {
            format!(
                "Package: {package}\nStatus: install ok installed\nArchitecture: {arch}\n\
                 Multi-Arch: allowed\nVersion: 99:0\nMaintainer: none\nDescription: stand-in\n\n"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::Suite, *};

    #[test]
    fn madison_lists_versions_with_their_suites() {
        let out = "linux-image-x |  6.1.176-1 | http://m.example/debian bookworm/main amd64 Packages\n\
                   linux-image-x | 6.1.192-2 | http://s.example/debian-security bookworm-security/main amd64 Packages\n\
                   linux | 6.1.192-2 | http://s.example/debian-security bullseye-security/main Sources\n";
        let offers = parse_madison(out);
        assert_eq!(offers.len(), 2);
        assert_eq!(offers[0].version, "6.1.176-1");
        assert_eq!(offers[0].suite, Suite::Bookworm);
        assert_eq!(offers[1].suite, Suite::BookwormSecurity);
    }

    #[test]
    fn a_simulated_install_gives_pins() {
        let out = "Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []\n\
                   Inst libgcc-s1 (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64])\n\
                   Conf libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64])\n";
        let pins: Vec<_> = parse_simulation(out).iter().map(Pin::to_string).collect();
        assert_eq!(
            pins,
            ["libc6=2.36-9+deb12u14", "libgcc-s1=12.2.0-14+deb12u1"]
        );
    }
}
