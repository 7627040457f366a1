//! Fills the programs' [`Layout`] from the running kernel: offsets from BTF,
//! addresses from `/proc/kallsyms`.

mod error;

use nlmfo_common::layout::{Layout, LockLists};

use super::btf::{self, Btf, Field, KernelBtf};
use super::state_layout;
use super::symbols::Symbols;
use super::unlock_layout;

pub(crate) use error::LayoutError;

/// The modules whose types the programs read.
pub(crate) const MODULES: [&str; 3] = ["lockd", "nfsd", "sunrpc"];

/// The objects that the programs compare with or walk: lockd's, and the kernel's lists.
pub(crate) const OBJECTS: [&str; 4] = [LOCK_OPERATIONS, FILES, LOCK_LISTS, CPU_OFFSETS];

/// The per-CPU lists of all locks, and what is added to a per-CPU variable's address.
const LOCK_LISTS: &str = "file_lock_list";
const CPU_OFFSETS: &str = "__per_cpu_offset";

const LOCK_OPERATIONS: &str = "nlmsvc_lock_operations";
const FILES: &str = "nlm_files";

/// Buckets of `nlm_files`: `FILE_NRHASH` in fs/lockd/svcsubs.c, 6.1 to 7.3. BTF has no variables of
/// modules, so the number cannot be read from the kernel; only the room up to the next symbol can be
/// checked.
const FILE_HASH_BUCKETS: u32 = 128;
/// One `struct hlist_head`.
const BUCKET_BYTES: u64 = 8;

/// The layout of the running kernel. lockd must be loaded. Without nfsd, the part about NFSv4 is zeros;
/// [`state_layout::load`] returns the reason.
///
/// # Errors
/// If lockd is not loaded, or the kernel does not show its types or addresses.
pub fn load() -> Result<Layout, LayoutError> {
    let symbols = Symbols::load(OBJECTS.into_iter().chain(state_layout::OBJECTS))?;
    // First, because without the module the types are missing too, and this error names the remedy.
    symbols.in_module(LOCK_OPERATIONS, "lockd")?;
    let btf = KernelBtf::load(&MODULES)?;
    let release = super::release().map_err(LayoutError::Release)?;
    fill(&btf, &symbols, &release)
}

/// `release` is for the errors.
pub(crate) fn fill(
    btf: &KernelBtf,
    symbols: &Symbols,
    release: &str,
) -> Result<Layout, LayoutError> {
    let lock_operations = symbols.in_module(LOCK_OPERATIONS, "lockd")?;
    if lock_operations.module.is_some() && !btf.has_module("lockd") {
        return Err(LayoutError::NoModuleBtf {
            release: release.to_owned(),
            module: "lockd",
            folder: btf::FOLDER,
        });
    }
    let lockd = Fields {
        btf: btf.of("lockd"),
        release,
    };
    let field = |path, bytes, purpose| lockd.field(path, bytes, purpose);
    let offset = |path, bytes, purpose| lockd.offset(path, bytes, purpose);

    let files = symbols.in_module(FILES, "lockd")?;
    let buckets = file_hash_buckets(files.room).map_err(|room| LayoutError::FileHash {
        release: release.to_owned(),
        room,
    })?;

    // 6.9 moved what locks and leases share into `file_lock_core c`.
    let fl_type = field(
        "file_lock.fl_type | file_lock.c.flc_type",
        None,
        "a lock's mode",
    )?;
    let fl_fields = [
        field(
            "file_lock.fl_link | file_lock.c.flc_link",
            Some(16),
            "the locks that /proc/locks shows",
        )?,
        field(
            "file_lock.fl_owner | file_lock.c.flc_owner",
            Some(8),
            "a lock's owner",
        )?,
        field(
            "file_lock.fl_list | file_lock.c.flc_list",
            Some(16),
            "a file's list of locks",
        )?,
        field(
            "file_lock.fl_file | file_lock.c.flc_file",
            Some(8),
            "a lock's file",
        )?,
        field("file_lock.fl_start", Some(8), "a lock's range")?,
        field("file_lock.fl_end", Some(8), "a lock's range")?,
        field(
            "file_lock.fl_lmops",
            Some(8),
            "telling lockd's locks from others",
        )?,
    ];
    let [
        fl_link,
        fl_owner,
        fl_list,
        fl_file,
        fl_start,
        fl_end,
        fl_lmops,
    ] = fl_fields.map(|f| f.offset);
    let states = state_layout::fill(btf, symbols, release).unwrap_or_default();
    let fl_span = fl_fields
        .iter()
        .chain([&fl_type])
        .map(|f| f.offset + f.size)
        .chain([states.lease_lmops + 8, states.blocked_requests + 16])
        .max();

    let lock = field("nlm_rqst.a_args.lock", None, "blocked requests")?.offset;
    let rqst_lock_fl = field(
        "nlm_rqst.a_args.lock.fl",
        None,
        "the range of a blocked request",
    )?
    .offset;

    Ok(Layout {
        nlmsvc_lock_operations: lock_operations.address,
        nlm_files: files.address,
        states,
        lock_lists: lock_lists(&lockd, symbols).unwrap_or_default(),
        unlocks: unlock_layout::fill(btf, release),

        fl_link,
        fl_owner,
        fl_list,
        fl_type: fl_type.offset,
        fl_file,
        fl_start,
        fl_end,
        fl_lmops,
        fl_span: fl_span.unwrap_or_default(),

        file_inode: offset("file.f_inode", 8, "a locked file's inode")?,
        inode_ino: offset("inode.i_ino", 8, "a locked file's inode number")?,
        inode_sb: offset("inode.i_sb", 8, "a locked file's filesystem")?,
        inode_flctx: offset("inode.i_flctx", 8, "a file's list of locks")?,
        flctx_posix: offset("file_lock_context.flc_posix", 16, "a file's list of locks")?,
        sb_dev: offset("super_block.s_dev", 4, "a locked file's device")?,

        lockowner_host: offset("nlm_lockowner.host", 8, "a lock's client and VIP")?,
        lockowner_svid: offset("nlm_lockowner.pid", 4, "a lock's svid")?,

        host_addr: offset("nlm_host.h_addr", 128, "a lock's client")?,
        host_srcaddr: offset("nlm_host.h_srcaddr", 128, "a lock's VIP")?,
        host_version: offset("nlm_host.h_version", 4, "a client's NLM version")?,
        host_proto: offset("nlm_host.h_proto", 2, "a client's transport")?,
        host_name: offset("nlm_host.h_name", 8, "the name that a client calls itself")?,
        host_net: offset("nlm_host.net", 8, "a lock's network namespace")?,
        host_expires: offset("nlm_host.h_expires", 8, "when a client called last")?,
        host_nsmhandle: offset("nlm_host.h_nsmhandle", 8, "the name that statd monitors")?,
        nsm_name: offset(
            "nlm_host.h_nsmhandle->sm_name",
            8,
            "the name that statd monitors",
        )?,
        nsm_priv: offset(
            "nlm_host.h_nsmhandle->sm_priv",
            16,
            "the cookie that statd hands back",
        )?,
        net_inum: offset("net.ns.inum", 4, "a lock's network namespace")?,

        nlm_file_list: offset("nlm_file.f_list", 16, "lockd's table of files")?,
        nlm_file_fh_size: offset("nlm_file.f_handle.size", 2, "a locked file's NFS handle")?,
        nlm_file_fh_data: field("nlm_file.f_handle.data", None, "a locked file's NFS handle")?
            .offset,
        nlm_file_file: offset("nlm_file.f_file", 16, "a locked file")?,
        nlm_file_shares: offset("nlm_file.f_shares", 8, "DOS shares")?,
        nlm_file_blocks: offset("nlm_file.f_blocks", 16, "blocked requests")?,

        block_list: offset("nlm_block.b_list", 16, "blocked requests")?,
        block_flist: offset("nlm_block.b_flist", 16, "blocked requests")?,
        block_host: offset("nlm_block.b_host", 8, "whose request is blocked")?,
        block_call: offset("nlm_block.b_call", 8, "what a blocked request asks for")?,
        block_granted: offset(
            "nlm_block.b_granted",
            1,
            "whether a blocked request was granted",
        )?,
        rqst_host: offset("nlm_rqst.a_host", 8, "whom a grant goes to")?,
        rqst_cookie: field(
            "nlm_rqst.a_args.cookie.data",
            None,
            "which grant was answered",
        )?
        .offset,
        rqst_lock_svid: offset(
            "nlm_rqst.a_args.lock.svid",
            4,
            "the svid of a blocked request",
        )?,
        rqst_lock_fl,
        lock_fl: rqst_lock_fl - lock,

        share_next: offset("nlm_file.f_shares->s_next", 8, "DOS shares")?,
        share_host: offset("nlm_file.f_shares->s_host", 8, "whose DOS share it is")?,
        share_owner_len: offset("nlm_file.f_shares->s_owner.len", 4, "a DOS share's owner")?,
        share_owner_data: offset("nlm_file.f_shares->s_owner.data", 8, "a DOS share's owner")?,
        share_access: offset(
            "nlm_file.f_shares->s_access",
            4,
            "a DOS share's access mode",
        )?,
        share_mode: offset("nlm_file.f_shares->s_mode", 4, "a DOS share's deny mode")?,

        nlm_files_buckets: buckets,
        pad: 0,
    })
}

/// None where they cannot be found: then the locks are read as `/proc/locks` shows them.
fn lock_lists(fields: &Fields, symbols: &Symbols) -> Option<LockLists> {
    let offset = |path, bytes| (fields.offset(path, bytes, "the kernel's lists of locks")).ok();
    let address = |name| match symbols.all(name) {
        [only] if only.module.is_none() => Some(only.address),
        _ => None,
    };
    Some(LockLists {
        variable: address(LOCK_LISTS)?,
        offsets: address(CPU_OFFSETS)?,
        head: offset("file_lock_list_struct.hlist", 8)?,
        link_cpu: offset("file_lock.fl_link_cpu | file_lock.c.flc_link_cpu", 4)?,
        cpus: super::possible_cpus()?,
        pad: 0,
    })
}

/// What code in one module sees, asked field by field.
pub(super) struct Fields<'a> {
    pub btf: &'a Btf,
    /// For the errors.
    pub release: &'a str,
}

impl Fields<'_> {
    /// The field at the end of `path`; an error if it is not `bytes` long.
    pub fn field(
        &self,
        path: &'static str,
        bytes: Option<u32>,
        purpose: &'static str,
    ) -> Result<Field, LayoutError> {
        let release = || self.release.to_owned();
        let field = self.btf.field(path).map_err(|source| LayoutError::Field {
            release: release(),
            purpose,
            source,
        })?;
        match bytes {
            Some(expected) if expected != field.size => Err(LayoutError::Size {
                release: release(),
                path,
                purpose,
                found: field.size,
                expected,
            }),
            _ => Ok(field),
        }
    }

    /// Where that field is.
    pub fn offset(
        &self,
        path: &'static str,
        bytes: u32,
        purpose: &'static str,
    ) -> Result<u32, LayoutError> {
        Ok(self.field(path, Some(bytes), purpose)?.offset)
    }
}

/// More room than the table needs proves nothing: it may be padding, or the end of the module's data.
/// With less room, this is another table.
fn file_hash_buckets(room: Option<u64>) -> Result<u32, u64> {
    let table = u64::from(FILE_HASH_BUCKETS) * BUCKET_BYTES;
    match room {
        Some(room) if room < table => Err(room),
        _ => Ok(FILE_HASH_BUCKETS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causes::chain;
    use crate::kernel::btf::Btf;

    const KALLSYMS: &str = "\
ffffffffc0a62400 r nlmsvc_lock_operations\t[lockd]
ffffffffc0a65040 b nlm_files\t[lockd]
ffffffffc0a65440 b nlmsvc_timeout\t[lockd]
";

    #[test]
    fn the_file_hash_needs_its_room() {
        assert_eq!(file_hash_buckets(Some(1024)), Ok(128));
        assert_eq!(file_hash_buckets(Some(1088)), Ok(128));
        assert_eq!(file_hash_buckets(None), Ok(128));
        assert_eq!(file_hash_buckets(Some(512)), Err(512));
    }

    /// The error of a kernel with these symbols and no types at all.
    fn error(kallsyms: &str) -> LayoutError {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vmlinux"), Btf::empty()).unwrap();
        let btf = KernelBtf::load_from(folder.path(), &MODULES).unwrap();
        let symbols = Symbols::parse(kallsyms.as_bytes(), OBJECTS).unwrap();
        fill(&btf, &symbols, "9.9.9-test").unwrap_err()
    }

    #[test]
    fn a_missing_field_is_named_with_the_kernel_and_its_purpose() {
        let text = chain(&error(&KALLSYMS.replace("\t[lockd]", "")));
        assert!(text.starts_with("kernel 9.9.9-test lacks"), "{text}");
        assert!(text.contains(": `file_lock.fl_type | "), "{text}");
        assert!(text.contains("needed for a lock's mode"), "{text}");
    }

    #[test]
    fn a_module_without_types_is_told_from_a_module_that_is_not_loaded() {
        assert!(matches!(error(KALLSYMS), LayoutError::NoModuleBtf { .. }));
        let text = error("ffffffff81000000 T _text\n").to_string();
        assert!(text.contains("modprobe lockd"), "{text}");
    }
}
