//! Against blobs that the tests write themselves.

use super::*;

/// A BTF blob in the making.
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    first_string: u32,
    next_id: u32,
}

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;

impl Writer {
    fn new() -> Self {
        Writer {
            types: Vec::new(),
            strings: vec![0],
            first_string: 0,
            next_id: 1,
        }
    }

    fn on(base: &Btf) -> Self {
        let first_string = base.strings.len() as u32;
        let next_id = base.first_id + base.records.len() as u32;
        Writer {
            types: Vec::new(),
            strings: vec![0],
            first_string,
            next_id,
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let offset = self.first_string + self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        offset
    }

    fn push(&mut self, words: &[u32]) {
        self.types
            .extend(words.iter().flat_map(|w| w.to_ne_bytes()));
    }

    fn ty(&mut self, kind: u32, name: &str, vlen: u32, size_or_type: u32) -> u32 {
        let name = self.string(name);
        self.push(&[name, kind << 24 | vlen, size_or_type]);
        self.next_id += 1;
        self.next_id - 1
    }

    fn int(&mut self, name: &str, bytes: u32) -> u32 {
        let id = self.ty(INT, name, 0, bytes);
        self.push(&[bytes * 8]);
        id
    }

    fn array(&mut self, of: u32, elements: u32) -> u32 {
        let id = self.ty(ARRAY, "", 0, 0);
        self.push(&[of, of, elements]);
        id
    }

    /// Members are (name, type, byte offset).
    fn composite(&mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let id = self.ty(kind, name, members.len() as u32, size);
        for &(name, ty, offset) in members {
            let name = self.string(name);
            self.push(&[name, ty, offset * 8]);
        }
        id
    }

    fn function(&mut self, name: &str, returns: u32, parameters: &[(&str, u32)]) {
        let proto = self.ty(FUNC_PROTO, "", parameters.len() as u32, returns);
        for &(name, ty) in parameters {
            let name = self.string(name);
            self.push(&[name, ty]);
        }
        self.ty(FUNC, name, 0, proto);
    }

    fn blob(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut blob = MAGIC.to_ne_bytes().to_vec();
        blob.extend([1, 0]);
        for word in [HEADER_LEN as u32, 0, types, types, strings] {
            blob.extend(word.to_ne_bytes());
        }
        blob.extend(&self.types);
        blob.extend(&self.strings);
        blob
    }

    fn parse(&self) -> Arc<Btf> {
        Btf::parse("vmlinux", self.blob(), None).unwrap()
    }
}

impl Btf {
    /// A blob without a type, for the tests of other modules.
    pub(crate) fn empty() -> Vec<u8> {
        Writer::new().blob()
    }
}

/// A kernel in small: `file_lock` with a core inside, a forward `nlm_host`.
fn vmlinux() -> Writer {
    let mut w = Writer::new();
    let u32_ = w.int("unsigned int", 4);
    let u64_ = w.int("long long unsigned int", 8);
    let loff = w.ty(TYPEDEF, "loff_t", 0, u64_);
    let fwd = w.ty(FWD, "nlm_host", 0, 0);
    w.ty(PTR, "", 0, fwd);
    let core = w.composite(
        STRUCT,
        "file_lock_core",
        16,
        &[("flc_owner", u64_, 0), ("flc_type", u32_, 8)],
    );
    let pair = w.array(u64_, 2);
    let volatile = w.ty(VOLATILE, "", 0, loff);
    let const_ = w.ty(CONST, "", 0, volatile);
    let inner = w.composite(STRUCT, "", 8, &[("a", u32_, 0), ("b", u32_, 4)]);
    let either = w.composite(UNION, "", 16, &[("fl_u", pair, 0), ("", inner, 0)]);
    w.composite(
        STRUCT,
        "file_lock",
        40,
        &[("c", core, 0), ("fl_start", const_, 16), ("", either, 24)],
    );
    w
}

/// lockd on top of it: the definition of `nlm_host` that vmlinux only announces.
fn lockd(vmlinux: &Arc<Btf>) -> Writer {
    let mut w = Writer::on(vmlinux);
    let u16_ = w.int("short unsigned int", 2);
    w.composite(
        STRUCT,
        "nlm_host",
        16,
        &[("h_version", 1, 8), ("h_proto", u16_, 12)],
    );
    // b_host's type is vmlinux's pointer to the forward declaration.
    w.composite(STRUCT, "nlm_block", 24, &[("b_host", 5, 16)]);
    w
}

#[test]
fn follows_members_typedefs_and_anonymous_members() {
    let btf = vmlinux().parse();
    let at = |path: &str| btf.field(path).unwrap();
    assert_eq!(
        at("file_lock.c.flc_type"),
        Field {
            offset: 8,
            size: 4,
            elements: None
        }
    );
    assert_eq!(
        at("file_lock.fl_start"),
        Field {
            offset: 16,
            size: 8,
            elements: None
        }
    );
    assert_eq!(
        at("file_lock.fl_u"),
        Field {
            offset: 24,
            size: 16,
            elements: Some(2)
        }
    );
    assert_eq!(
        at("file_lock.b"),
        Field {
            offset: 28,
            size: 4,
            elements: None
        }
    );
}

#[test]
fn takes_the_alternative_that_exists() {
    let btf = vmlinux().parse();
    let owner = btf
        .field("file_lock.fl_owner | file_lock.c.flc_owner")
        .unwrap();
    assert_eq!((owner.offset, owner.size), (0, 8));
}

#[test]
fn a_module_goes_on_where_vmlinux_ends() {
    let vmlinux = vmlinux().parse();
    let lockd = Btf::parse("lockd", lockd(&vmlinux).blob(), Some(Arc::clone(&vmlinux))).unwrap();
    assert_eq!(lockd.field("nlm_host.h_version").unwrap().offset, 8);
    assert_eq!(lockd.field("nlm_host.h_proto").unwrap().size, 2);
    assert_eq!(lockd.field("file_lock.fl_start").unwrap().offset, 16);
}

#[test]
fn a_pointer_to_a_forward_declaration_leads_to_the_definition() {
    let vmlinux = vmlinux().parse();
    let lockd = Btf::parse("lockd", lockd(&vmlinux).blob(), Some(Arc::clone(&vmlinux))).unwrap();
    assert_eq!(lockd.field("nlm_block.b_host->h_proto").unwrap().offset, 12);
}

#[test]
fn a_forward_declaration_alone_is_no_struct() {
    let error = vmlinux().parse().field("nlm_host.h_version").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`nlm_host.h_version` is not there: vmlinux has no struct nlm_host"
    );
}

#[test]
fn structs_of_one_name_must_agree_on_the_field() {
    let mut w = vmlinux();
    w.composite(STRUCT, "svc_rqst", 16, &[("same", 1, 4), ("moved", 1, 8)]);
    w.composite(STRUCT, "svc_rqst", 24, &[("same", 1, 4), ("moved", 1, 16)]);
    let btf = w.parse();
    assert_eq!(btf.field("svc_rqst.same").unwrap().offset, 4);
    let error = btf.field("svc_rqst.moved").unwrap_err();
    assert!(matches!(error, FieldError::Ambiguous { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("byte 8 with 4 bytes and at byte 16"),
        "{error}"
    );
}

#[test]
fn a_missing_member_says_where_the_path_ended() {
    let error = vmlinux().parse().field("file_lock.c.flc_gone").unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("file_lock.c has no member flc_gone"),
        "{error}"
    );
    let error = vmlinux()
        .parse()
        .field("file_lock.fl_start->x")
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("file_lock.fl_start has no member x"),
        "{error}"
    );
}

#[test]
fn a_bit_field_is_not_taken_for_a_byte() {
    let mut w = Writer::new();
    let int = w.int("unsigned int", 4);
    w.ty(STRUCT, "flags", 1 | 1 << 31, 4);
    let name = w.string("one_bit");
    w.push(&[name, int, 1 << 24 | 3]);
    assert!(w.parse().field("flags.one_bit").is_err());
}

#[test]
fn a_prototype_reads_like_c() {
    let mut w = vmlinux();
    let int = w.int("int", 4);
    let char_ = w.int("char", 1);
    let const_char = w.ty(CONST, "", 0, char_);
    let text = w.ty(PTR, "", 0, const_char);
    let host = w.ty(FWD, "svc_rqst", 0, 0);
    let host = w.ty(PTR, "", 0, host);
    w.function(
        "nlmsvc_example",
        int,
        &[("rqstp", host), ("name", text), ("reclaim", int)],
    );
    w.function("nothing", 0, &[]);
    let btf = w.parse();
    let proto = btf.own_function("nlmsvc_example").unwrap();
    assert_eq!(
        proto.to_string(),
        "int nlmsvc_example(struct svc_rqst *rqstp, const char *name, int reclaim)"
    );
    assert_eq!(
        btf.own_function("nothing").unwrap().to_string(),
        "void nothing(void)"
    );
    assert_eq!(btf.own_function("not_there"), None);
}

#[test]
fn a_cycle_of_typedefs_ends() {
    let mut w = Writer::new();
    w.ty(TYPEDEF, "one", 0, 2);
    w.ty(TYPEDEF, "two", 0, 1);
    w.composite(STRUCT, "s", 8, &[("m", 1, 0)]);
    assert!(w.parse().field("s.m").is_err());
}

#[test]
fn no_cut_or_flipped_blob_panics() {
    let blob = vmlinux().blob();
    for len in 0..blob.len() {
        assert!(
            Btf::parse("cut", blob[..len].to_vec(), None).is_err(),
            "{len} bytes"
        );
    }
    for at in 0..blob.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut flipped = blob.clone();
            flipped[at] ^= flip;
            if let Ok(btf) = Btf::parse("flipped", flipped, None) {
                let _ = btf.field("file_lock.fl_u");
                let _ = btf.field("file_lock.b");
            }
        }
    }
}

#[test]
fn a_kernel_without_type_information_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let error = KernelBtf::load_from(folder.path(), &["lockd"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
}

#[test]
fn a_module_without_a_file_is_looked_up_in_vmlinux() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vmlinux"), vmlinux().blob()).unwrap();
    let btf = KernelBtf::load_from(folder.path(), &["lockd"]).unwrap();
    assert!(!btf.has_module("lockd"));
    assert!(btf.of("lockd").field("file_lock.fl_start").is_ok());
}
