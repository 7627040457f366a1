//! What clients send: RPC messages (RFC 5531) with NLM arguments (RFC 1813,
//! appendix II; XNFS, chapter 10), and the markers between them on a stream.

pub const NLM: u32 = 100_021;

pub const LAST_FRAGMENT: u32 = 1 << 31;

/// NLM's procedures by number.
pub mod procedure {
    pub const NULL: u32 = 0;
    pub const TEST: u32 = 1;
    pub const LOCK: u32 = 2;
    pub const CANCEL: u32 = 3;
    pub const UNLOCK: u32 = 4;
    pub const GRANTED: u32 = 5;
    pub const TEST_MSG: u32 = 6;
    pub const LOCK_MSG: u32 = 7;
    pub const CANCEL_MSG: u32 = 8;
    pub const UNLOCK_MSG: u32 = 9;
    pub const GRANTED_MSG: u32 = 10;
    pub const GRANTED_RES: u32 = 15;
    pub const SHARE: u32 = 20;
    pub const UNSHARE: u32 = 21;
    pub const NM_LOCK: u32 = 22;
    pub const FREE_ALL: u32 = 23;

    pub const ALL: [u32; 16] = [
        NULL,
        TEST,
        LOCK,
        CANCEL,
        UNLOCK,
        GRANTED,
        TEST_MSG,
        LOCK_MSG,
        CANCEL_MSG,
        UNLOCK_MSG,
        GRANTED_MSG,
        GRANTED_RES,
        SHARE,
        UNSHARE,
        NM_LOCK,
        FREE_ALL,
    ];
}

#[derive(Clone, Debug)]
pub enum Credential {
    Null,
    Unix {
        machine: Vec<u8>,
        groups: Vec<u32>,
    },
    /// AUTH_UNIX whose declared length is off by this many bytes.
    Lying {
        machine: Vec<u8>,
        groups: Vec<u32>,
        by: i32,
    },
}

/// The arguments that any of the procedures takes.
#[derive(Clone, Debug)]
pub struct Arguments {
    pub cookie: Vec<u8>,
    pub caller: Vec<u8>,
    pub handle: Vec<u8>,
    pub owner: Vec<u8>,
    pub reclaim: bool,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub xid: u32,
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    pub credential: Credential,
    pub arguments: Arguments,
    /// What follows the arguments in the record.
    pub trailing: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Message {
    Call(Call),
    /// An accepted reply, as lockd's own calls to a client are answered.
    Reply {
        xid: u32,
        results: Vec<u8>,
    },
}

/// XDR (RFC 4506), growing.
#[derive(Default)]
struct Xdr(Vec<u8>);

impl Xdr {
    fn word(&mut self, word: u32) {
        self.0.extend(word.to_be_bytes());
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|&word| self.word(word));
    }

    fn opaque(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u32);
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

impl Credential {
    fn encode(&self, xdr: &mut Xdr) {
        let (machine, groups, by) = match self {
            Self::Null => return xdr.words(&[0, 0]),
            Self::Unix { machine, groups } => (machine, groups, 0),
            Self::Lying {
                machine,
                groups,
                by,
            } => (machine, groups, *by),
        };
        let mut body = Xdr::default();
        body.word(0x5eed);
        body.opaque(machine);
        body.words(&[1000, 100, groups.len() as u32]);
        body.words(groups);
        xdr.words(&[1, (body.0.len() as u32).wrapping_add_signed(by)]);
        xdr.0.extend(body.0);
    }
}

impl Call {
    /// As a Linux client makes it.
    pub fn of_linux(xid: u32, procedure: u32, reclaim: bool) -> Self {
        const UUID16_INUM: u8 = 7;
        Self {
            xid,
            program: NLM,
            version: 4,
            procedure,
            credential: Credential::Unix {
                machine: b"client".to_vec(),
                groups: vec![100],
            },
            arguments: Arguments {
                cookie: xid.to_be_bytes().to_vec(),
                caller: b"client".to_vec(),
                handle: handle(UUID16_INUM, &[9; 28]),
                owner: b"1@client".to_vec(),
                reclaim,
            },
            trailing: Vec::new(),
        }
    }

    fn file(&self, xdr: &mut Xdr) {
        xdr.opaque(&self.arguments.caller);
        xdr.opaque(&self.arguments.handle);
        xdr.opaque(&self.arguments.owner);
    }

    /// `nlm_lock`, `nlm4_lock`.
    fn lock(&self, xdr: &mut Xdr) {
        const SVID: u32 = 4711;
        self.file(xdr);
        xdr.word(SVID);
        match self.version {
            4 => xdr.words(&[0, 1, 0, u32::MAX]),
            _ => xdr.words(&[1, u32::MAX]),
        }
    }

    fn arguments(&self, xdr: &mut Xdr) {
        use procedure::*;
        const EXCLUSIVE: u32 = 1;
        const BLOCK: u32 = 1;
        const STATE: u32 = 3;
        let Arguments {
            cookie, reclaim, ..
        } = &self.arguments;
        match self.procedure {
            NULL => {}
            FREE_ALL => {
                xdr.opaque(&self.arguments.caller);
                xdr.word(STATE);
            }
            GRANTED_RES => {
                xdr.opaque(cookie);
                xdr.word(0);
            }
            TEST | TEST_MSG | GRANTED | GRANTED_MSG => {
                xdr.opaque(cookie);
                xdr.word(EXCLUSIVE);
                self.lock(xdr);
            }
            UNLOCK | UNLOCK_MSG => {
                xdr.opaque(cookie);
                self.lock(xdr);
            }
            CANCEL | CANCEL_MSG => {
                xdr.opaque(cookie);
                xdr.words(&[BLOCK, EXCLUSIVE]);
                self.lock(xdr);
            }
            SHARE | UNSHARE => {
                xdr.opaque(cookie);
                self.file(xdr);
                xdr.words(&[1, 2, u32::from(*reclaim)]);
            }
            _ => {
                xdr.opaque(cookie);
                xdr.words(&[BLOCK, EXCLUSIVE]);
                self.lock(xdr);
                xdr.words(&[u32::from(*reclaim), STATE]);
            }
        }
    }
}

impl Message {
    /// The message, without a marker.
    pub fn encode(&self) -> Vec<u8> {
        let mut xdr = Xdr::default();
        match self {
            Self::Call(call) => {
                xdr.words(&[call.xid, 0, 2, call.program, call.version, call.procedure]);
                call.credential.encode(&mut xdr);
                xdr.words(&[0, 0]);
                call.arguments(&mut xdr);
                xdr.0.extend(&call.trailing);
            }
            Self::Reply { xid, results } => {
                xdr.words(&[*xid, 1, 0, 0, 0, 0]);
                xdr.0.extend(results);
            }
        }
        xdr.0
    }
}

/// A record of one fragment.
pub fn record(message: &[u8]) -> Vec<u8> {
    fragment(message, LAST_FRAGMENT)
}

/// A fragment; `last` is [`LAST_FRAGMENT`] or 0.
pub fn fragment(message: &[u8], last: u32) -> Vec<u8> {
    let marker = last | message.len() as u32;
    [&marker.to_be_bytes(), message].concat()
}

/// knfsd's handle (fs/nfsd/nfsfh.h): version 1, no authentication, the kind of
/// filesystem id, the kind of file id, and both ids.
pub fn handle(fsid_kind: u8, ids: &[u8]) -> Vec<u8> {
    const INODE_AND_GENERATION: u8 = 1;
    [&[1, 0, fsid_kind, INODE_AND_GENERATION], ids].concat()
}
