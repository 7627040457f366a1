//! The types and symbols of a kernel, extracted from its files without a boot.
//!
//! The directory looks as `/sys/kernel/btf` does (`vmlinux`, and a module's own types
//! under its name), with `kallsyms` beside it, in `/proc/kallsyms`' form.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use cpio::newc;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SymbolKind, SymbolSection,
    elf::{SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE},
    read::elf::ElfFile64,
};

use super::{
    format::{btf, decompressor, is_arm64, is_elf, payload},
    image::Kernel,
    tools::Tools,
};
use crate::cache::Cache;

/// The modules that nlmfo's probes sit in or read structs of, and `nfs`, which
/// shares functions' names with them.
const MODULES: [&str; 5] = ["grace", "lockd", "nfs", "nfsd", "sunrpc"];

const TYPES: &str = ".BTF";
/// Types of a module that was built apart from its kernel, on a base of its own.
const OWN_BASE: &str = ".BTF.base";

/// The directory with this kernel's types and symbols, made the first time.
pub(super) fn extract(cache: &Cache, tools: &Tools, kernel: &Kernel) -> Result<PathBuf> {
    let folder = kernel.image.parent().and_then(Path::file_name);
    let key = folder.context("a kernel's image lies in its own directory")?;
    // The leading number changes with what is written.
    let entry = format!("types/1-{}", key.display());
    cache
        .once(&entry, |to| write(tools, kernel, to))
        .with_context(|| format!("take the types of {} from its files", kernel.release))
}

fn write(tools: &Tools, kernel: &Kernel, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    let image = unpacked(tools, &kernel.image)?;
    let mut symbols = String::new();
    let types = match is_arm64(&image) {
        // It has no sections and no symbols.
        true => btf(&image),
        false => {
            let vmlinux = ElfFile64::<object::Endianness>::parse(&*image)?;
            for symbol in vmlinux
                .symbols()
                .filter(object::ObjectSymbol::is_definition)
            {
                let kind = letter(&vmlinux, symbol.section());
                line(&mut symbols, symbol.address(), kind, symbol.name()?, None);
            }
            section(&vmlinux, TYPES)?
        }
    };
    let types = types.context("its image has none: build it with CONFIG_DEBUG_INFO_BTF=y")?;
    fs::write(to.join("vmlinux"), types)?;

    let mut base = kernel.arch.first_module();
    let mut has_lockd = !symbols.is_empty();
    for (name, file) in modules(kernel)? {
        let module = ElfFile64::<object::Endianness>::parse(&*file)
            .with_context(|| format!("read the module {name}"))?;
        ensure!(
            section(&module, OWN_BASE)?.is_none(),
            "the module {name} was not built with this kernel: its types have a base of their own"
        );
        if let Some(types) = section(&module, TYPES)? {
            fs::write(to.join(&name), types)?;
        }
        base = place(&module, &name, base, &mut symbols)?;
        has_lockd |= name == "lockd";
    }
    ensure!(
        has_lockd,
        "lockd is built in, and the image has no symbols: name the kernel by its vmlinux"
    );
    let mut kallsyms = File::create(to.join("kallsyms"))?;
    kallsyms.write_all(symbols.as_bytes())?;
    Ok(())
}

/// The kernel's image; that of a kernel without a direct entry is kept packed.
fn unpacked(tools: &Tools, image: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    if is_elf(&bytes) || is_arm64(&bytes) {
        return Ok(bytes);
    }
    let packed = payload(&bytes).context("its image is neither ELF nor bzImage")?;
    let Some((program, args, sized)) = decompressor(packed) else {
        bail!("its image is packed in a way that is not known here");
    };
    let end = packed.len() - if sized { 4 } else { 0 };
    tools.filter(program, args, &packed[..end])
}

fn section<'a>(elf: &ElfFile64<'a>, name: &str) -> Result<Option<&'a [u8]>> {
    let section = elf.section_by_name(name);
    Ok(section.map(|section| section.data()).transpose()?)
}

/// The files of those of [`MODULES`] that are not built in, by name.
fn modules(kernel: &Kernel) -> Result<Vec<(String, Vec<u8>)>> {
    let Some(layer) = &kernel.modules else {
        return Ok(Vec::new());
    };
    let context = || format!("read {}", layer.display());
    let mut archive = BufReader::new(File::open(layer).with_context(context)?);
    let mut found = Vec::new();
    loop {
        let mut entry = newc::Reader::new(archive).with_context(context)?;
        if entry.entry().is_trailer() {
            return Ok(found);
        }
        let path = entry.entry().name();
        let name = path.rsplit('/').next().and_then(|f| f.strip_suffix(".ko"));
        if let Some(name) = name.filter(|name| MODULES.contains(name)) {
            let name = name.to_owned();
            let mut file = Vec::new();
            entry.read_to_end(&mut file).with_context(context)?;
            found.push((name, file));
        }
        archive = entry.finish().with_context(context)?;
    }
}

/// Lays a module's sections out from `base` on and writes its symbols' addresses;
/// returns where the next module may begin. Within a section they are as far apart
/// as when it is loaded.
fn place(elf: &ElfFile64, module: &str, base: u64, symbols: &mut String) -> Result<u64> {
    let mut next = base;
    let mut starts = Vec::new();
    for section in elf.sections() {
        if has(section.flags(), SHF_ALLOC) {
            let start = next.next_multiple_of(section.align().max(1));
            starts.push((section.index(), start));
            next = start + section.size();
        }
    }
    for symbol in elf.symbols() {
        // Nor what says where arm64's code and data begin, which the kernel hides too.
        let is_mapping = symbol.name()?.starts_with('$');
        if is_mapping || matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File) {
            continue;
        }
        let home = symbol.section_index();
        if let Some((_, start)) = starts.iter().find(|(index, _)| Some(*index) == home) {
            let kind = letter(elf, symbol.section());
            let address = start + symbol.address();
            line(symbols, address, kind, symbol.name()?, Some(module));
        }
    }
    // A page, so that no object seems to reach into the next module.
    Ok((next + 1).next_multiple_of(4096))
}

fn has(flags: SectionFlags, flag: u32) -> bool {
    matches!(flags, SectionFlags::Elf { sh_flags } if sh_flags & u64::from(flag) != 0)
}

/// As nm writes it, without telling local symbols from global ones.
fn letter(elf: &ElfFile64, section: SymbolSection) -> char {
    let section = section.index().and_then(|i| elf.section_by_index(i).ok());
    let is = |flag| section.as_ref().is_some_and(|s| has(s.flags(), flag));
    if is(SHF_EXECINSTR) {
        't'
    } else if is(SHF_WRITE) {
        'd'
    } else {
        'r'
    }
}

fn line(to: &mut String, address: u64, kind: char, name: &str, module: Option<&str>) {
    let module = module.map_or_else(String::new, |module| format!("\t[{module}]"));
    writeln!(to, "{address:016x} {kind} {name}{module}").expect("a string takes everything");
}
