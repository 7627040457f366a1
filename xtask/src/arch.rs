//! The processor architectures that nlmfo is built for, and that the lab boots.

use std::fmt;

use clap::ValueEnum;

/// An architecture, by Debian's name of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// x86-64
    Amd64,
    /// 64-bit Arm
    Arm64,
}

impl Arch {
    /// This machine's.
    pub const HERE: Self = match cfg!(target_arch = "aarch64") {
        true => Self::Arm64,
        false => Self::Amd64,
    };

    /// As Debian calls it.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust, rpm, QEMU and the kernel (`uname -m`) call it.
    pub const fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The target that its programs are compiled for.
    pub fn triple(self) -> String {
        format!("{}-unknown-linux-gnu", self.machine())
    }

    /// Where Debian puts its shared libraries, below `usr`.
    pub fn libraries(self) -> String {
        format!("lib/{}-linux-gnu", self.machine())
    }

    /// Suffix of names in the cache: empty for this machine's architecture, so that entries of other
    /// architectures are separate.
    pub fn suffix(self) -> &'static str {
        match (self, Self::HERE) {
            (Self::Amd64, Self::Arm64) => "-amd64",
            (Self::Arm64, Self::Amd64) => "-arm64",
            _ => "",
        }
    }

    /// The emulator of its machines, a package of Debian.
    pub(crate) const fn emulator_package(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86",
            Self::Arm64 => "qemu-system-arm",
        }
    }

    /// QEMU's machine: no device but those that the lab adds.
    pub(crate) const fn board(self) -> &'static str {
        match self {
            Self::Amd64 => "q35,sata=off,smbus=off,usb=off,i8042=off,vmport=off",
            Self::Arm64 => "virt,gic-version=3",
        }
    }

    /// QEMU's processor for emulation: all features. Pointer signatures use QEMU's own algorithm, since
    /// that of the architecture is slow to emulate.
    pub(crate) const fn emulated_processor(self) -> &'static str {
        match self {
            Self::Amd64 => "max",
            Self::Arm64 => "max,pauth-impdef=on",
        }
    }

    /// Kernel arguments of this architecture: mainly the serial console.
    ///
    /// `no_timer_check`: on a busy host an emulated timer may miss the few ticks by which the
    /// kernel proves it ("8254 timer not connected to IO-APIC", a panic).
    pub(crate) const fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Amd64 => "console=ttyS0 no_timer_check",
            Self::Arm64 => "console=ttyAMA0",
        }
    }

    /// Where its kernel puts the first module, as far as that is known in advance.
    pub(crate) const fn first_module(self) -> u64 {
        match self {
            Self::Amd64 => 0xffff_ffff_c000_0000,
            Self::Arm64 => 0xffff_8000_0000_0000,
        }
    }
}

impl Default for Arch {
    fn default() -> Self {
        Self::HERE
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.debian())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_one_of_them() {
        assert_eq!(Arch::HERE.machine(), std::env::consts::ARCH);
        assert_eq!(Arch::HERE.suffix(), "");
    }
}
