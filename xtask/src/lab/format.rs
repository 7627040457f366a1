//! The formats of kernel images: x86's bzImage, arm64's Image, and ELF.

use object::elf::EM_X86_64;

use crate::arch::Arch;

/// What a kernel image is made for, if QEMU boots it: of arm64 it does not boot an ELF image.
pub(super) fn arch_of(image: &[u8]) -> Option<Arch> {
    if is_elf(image) {
        let machine = u16::from_le_bytes(image.get(18..20)?.try_into().ok()?);
        (machine == EM_X86_64).then_some(Arch::Amd64)
    } else if is_arm64(image) {
        Some(Arch::Arm64)
    } else {
        setup_header(image).map(|()| Arch::Amd64)
    }
}

/// A bzImage's own version string (Documentation/arch/x86/boot.rst,
/// `kernel_version`), or the banner inside another image, which is not packed.
pub(super) fn release_of(image: &[u8]) -> Option<String> {
    let text = if is_elf(image) || is_arm64(image) {
        const BANNER: &[u8] = b"Linux version ";
        let at = find(image, BANNER)?;
        &image[at + BANNER.len()..]
    } else {
        setup_header(image)?;
        let offset = usize::from(u16::from_le_bytes(
            image.get(0x20e..0x210)?.try_into().ok()?,
        ));
        image.get(0x200 + offset..)?
    };
    let end = text
        .iter()
        .position(|b| b.is_ascii_whitespace() || *b == 0)?;
    let release = std::str::from_utf8(&text[..end]).ok()?;
    (!release.is_empty() && !release.contains('/')).then(|| release.to_owned())
}

pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// An uncompressed kernel of arm64 (Documentation/arch/arm64/booting.rst).
pub(super) fn is_arm64(image: &[u8]) -> bool {
    image.get(0x38..0x3c) == Some(b"ARM\x64")
}

/// The kernel's types in an image without sections (Documentation/bpf/btf.rst): a header of 24
/// bytes, the types right behind it, the names right behind those.
pub(super) fn btf(image: &[u8]) -> Option<&[u8]> {
    const START: [u8; 12] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0];
    let mut from = 0;
    loop {
        let at = from + find(image.get(from..)?, &START)?;
        let word = |index: usize| -> Option<usize> {
            let bytes = image.get(at + 4 * index..at + 4 * index + 4)?;
            usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
        };
        let (types, names, length) = (word(3)?, word(4)?, word(5)?);
        let whole = image.get(at..at + 24 + names + length);
        if let Some(whole) = whole.filter(|_| types > 0 && types == names && length > 0) {
            return Some(whole);
        }
        from = at + START.len();
    }
}

fn setup_header(image: &[u8]) -> Option<()> {
    (image.get(0x202..0x206)? == b"HdrS").then_some(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// The compressed kernel inside a bzImage, as boot.rst's `payload_offset` and
/// `payload_length` (protocol 2.08) tell.
pub(super) fn payload(image: &[u8]) -> Option<&[u8]> {
    setup_header(image)?;
    let word = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?)).ok()
    };
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?)
}

/// The program that decompresses a payload, its arguments, and whether the
/// build put the size behind the data (scripts/Makefile.lib, `size_append`).
pub(super) fn decompressor(
    payload: &[u8],
) -> Option<(&'static str, &'static [&'static str], bool)> {
    Some(match payload {
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"], false),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"], true),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &["-dc"], true),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"], true),
        _ => return None,
    })
}

/// Whether QEMU can enter this ELF image directly: it looks for the ELF note
/// `XEN_ELFNOTE_PHYS32_ENTRY` (type 18, owner "Xen").
pub(super) fn has_pvh_note(elf: &[u8]) -> bool {
    [4u32, 8].iter().any(|size| {
        let mut note = Vec::new();
        for word in [4, *size, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        find(elf, &note).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 * 2];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x300 + 21].copy_from_slice(b"6.12.107+deb12 (a@b) ");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        let size = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&size.to_le_bytes());
        image.truncate(1024 + 16);
        image.extend(payload);
        image
    }

    #[test]
    fn a_bzimage_tells_its_release_and_payload() {
        let image = bzimage(b"\x28\xb5\x2f\xfdabc");
        assert_eq!(release_of(&image).as_deref(), Some("6.12.107+deb12"));
        let payload = payload(&image).unwrap();
        assert_eq!(payload, b"\x28\xb5\x2f\xfdabc");
        assert_eq!(decompressor(payload).unwrap().0, "zstd");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert_eq!(release_of(b"#!/bin/sh\n"), None);
        assert_eq!(payload(&[0; 4096]), None);
        let mut cut = bzimage(b"\x1f\x8b....");
        cut.pop();
        assert_eq!(payload(&cut), None);
    }

    #[test]
    fn an_image_of_arm64_tells_its_release_and_types() {
        let mut image = vec![0; 0x40];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        image.extend(b"Linux version 6.12.111+deb13-cloud-arm64 (a@b)\0");
        assert_eq!(arch_of(&image), Some(Arch::Arm64));
        assert_eq!(
            release_of(&image).as_deref(),
            Some("6.12.111+deb13-cloud-arm64")
        );
        assert_eq!(btf(&image), None);
        let header = |names: u8, length: u8| {
            let mut header = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0];
            for word in [4, names, length] {
                header.extend([word, 0, 0, 0]);
            }
            header
        };
        // The first says something else: it is no header.
        image.extend(header(200, 3));
        let mut types = header(4, 3);
        types.extend(b"type\0a\0");
        image.extend(&types);
        image.extend(b"other data");
        assert_eq!(btf(&image), Some(&types[..]));
    }

    #[test]
    fn images_are_of_their_architecture() {
        assert_eq!(arch_of(&bzimage(b"\x1f\x8b")), Some(Arch::Amd64));
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(64, 0);
        assert_eq!(arch_of(&elf), None);
        elf[18] = 62;
        assert_eq!(arch_of(&elf), Some(Arch::Amd64));
        elf[18] = 183;
        assert_eq!(arch_of(&elf), None);
        assert_eq!(arch_of(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn an_elf_image_tells_its_release() {
        let elf = b"\x7fELF....Linux version 7.3.4-dirty (me@here)\0";
        assert_eq!(release_of(elf).as_deref(), Some("7.3.4-dirty"));
        assert!(!has_pvh_note(elf));
        let noted = b"\x7fELF\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0........";
        assert!(has_pvh_note(noted));
    }
}
