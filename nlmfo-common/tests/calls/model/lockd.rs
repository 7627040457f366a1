//! How lockd reads the bytes that it gets: an independent decoder, written from
//! RFC 5531, RFC 1813 and the kernel's sources, that shares nothing with the parser.
//!
//! Where kernels differ, it accepts what any of them accepts.

const NLM: u32 = 100_021;
/// `svc_serv.sv_max_mesg` of lockd: `LOCKD_BUFSIZE` and a page, in whole pages
/// (fs/lockd/svc.c and net/sunrpc/svc.c, 6.1). A longer record closes the connection.
const MAX_RECORD: usize = 8192;
/// `LM_MAXSTRLEN` and `MAXNETOBJ_SZ`. Kernels want less of most.
const MAX_OPAQUE: u32 = 1024;

/// What ends an AUTH_UNIX credential.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// Its declared length, as RFC 5531 has it.
    Length,
    /// The name and groups in it; the length is not looked at
    /// (`net/sunrpc/svcauth_unix.c`, `svcauth_unix_accept`, 6.1 and 6.12).
    Contents,
}

impl Reading {
    pub const BOTH: [Self; 2] = [Self::Length, Self::Contents];
}

/// A call as lockd takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Lock {
        xid: u32,
        reclaim: bool,
        /// Offset of the last byte of the `reclaim` word in the message.
        at: usize,
    },
    /// lockd does not read its `reclaim` word, which would end with this byte.
    Share {
        at: usize,
    },
    Other,
}

/// A message, and where each of its bytes stood in the stream.
pub struct Record {
    pub message: Vec<u8>,
    pub at: Vec<usize>,
}

/// The whole messages of a stream, up to where lockd closes the connection
/// (net/sunrpc/svcsock.c, `svc_tcp_recvfrom`).
pub fn records(stream: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut record = Record {
        message: Vec::new(),
        at: Vec::new(),
    };
    let mut here = 0;
    while let Some(marker) = stream.get(here..here + 4) {
        let marker = u32::from_be_bytes([marker[0], marker[1], marker[2], marker[3]]);
        let len = (marker & 0x7fff_ffff) as usize;
        here += 4;
        if record.message.len() + len > MAX_RECORD {
            break;
        }
        let Some(fragment) = stream.get(here..here + len) else {
            break;
        };
        record.message.extend(fragment);
        record.at.extend(here..here + len);
        here += len;
        if marker & 0x8000_0000 != 0 {
            if record.message.len() < 8 {
                break;
            }
            records.push(std::mem::replace(
                &mut record,
                Record {
                    message: Vec::new(),
                    at: Vec::new(),
                },
            ));
        }
    }
    records
}

/// What lockd takes a message for; `None` if it refuses it, or drops it.
pub fn take(message: &[u8], reading: Reading) -> Option<Taken> {
    let mut xdr = Decoder { message, here: 0 };
    let xid = xdr.word()?;
    if xdr.word()? != 0 || xdr.word()? != 2 || xdr.word()? != NLM {
        return None;
    }
    let version = xdr.word()?;
    let procedure = xdr.word()?;
    // fs/lockd/svc.c: version 1 has 17 procedures, versions 3 and 4 have 24.
    let procedures = match version {
        1 => 17,
        3 | 4 => 24,
        _ => return None,
    };
    if procedure >= procedures {
        return None;
    }
    xdr.credential(reading)?;
    // The verifier.
    if xdr.word()? != 0 || xdr.word()? != 0 {
        return None;
    }
    match procedure {
        2 | 7 | 22 => {
            xdr.opaque()?;
            xdr.skip(8)?;
            xdr.file(version)?;
            xdr.skip(if version == 4 { 20 } else { 12 })?;
            let reclaim = xdr.word()? != 0;
            let at = xdr.here - 1;
            xdr.word()?;
            Some(Taken::Lock { xid, reclaim, at })
        }
        20 => {
            xdr.opaque()?;
            xdr.file(version)?;
            xdr.skip(8)?;
            Some(Taken::Share { at: xdr.here + 3 })
        }
        _ => Some(Taken::Other),
    }
}

struct Decoder<'a> {
    message: &'a [u8],
    here: usize,
}

impl Decoder<'_> {
    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.here += bytes;
        (self.here <= self.message.len()).then_some(())
    }

    fn word(&mut self) -> Option<u32> {
        let at = self.here;
        self.skip(4)?;
        let word = self.message[at..].first_chunk()?;
        Some(u32::from_be_bytes(*word))
    }

    fn opaque(&mut self) -> Option<u32> {
        let len = self.word()?;
        if len > MAX_OPAQUE {
            return None;
        }
        self.skip((len as usize).next_multiple_of(4))?;
        Some(len)
    }

    /// The caller's name, the file handle and the owner.
    fn file(&mut self, version: u32) -> Option<()> {
        self.opaque()?;
        let handle = self.opaque()?;
        // NFSv2's handles have one length (fs/lockd/xdr.c, `svcxdr_decode_fhandle`).
        if version != 4 && handle != 32 {
            return None;
        }
        self.opaque()?;
        Some(())
    }

    fn credential(&mut self, reading: Reading) -> Option<()> {
        const MAX_AUTH: u32 = 400;
        match (self.word()?, reading) {
            (0, _) => (self.word()? == 0).then_some(()),
            (1, Reading::Length) => {
                let len = self.word()?;
                if len > MAX_AUTH {
                    return None;
                }
                self.skip((len as usize).next_multiple_of(4))
            }
            (1, Reading::Contents) => {
                self.skip(8)?;
                // 6.1 counts words, in 32 bits: a name of almost 4 GiB has none.
                let words = self.word()?.wrapping_add(3) >> 2;
                if words > 64 {
                    return None;
                }
                self.skip(words as usize * 4 + 8)?;
                let groups = self.word()?;
                if groups > 16 {
                    return None;
                }
                self.skip(groups as usize * 4)
            }
            _ => None,
        }
    }
}
