//! nfsd's generic netlink family, whose release commands (7.2 and newer) take
//! IPv6 addresses that `/proc/fs/nfsd/unlock_ip` refuses.
//!
//! Numbers are those of `include/uapi/linux/nfsd_netlink.h`, 7.2.

use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::{GenlCtrlAttrs, OpAttrs};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::AddressFamily;

const FAMILY: &str = "nfsd";

/// A command of the family that releases locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::enum_variant_names,
    reason = "the names of the commands, which an error prints"
)]
pub enum Command {
    /// Locks taken through a server address, in all network namespaces.
    UnlockIp = 16,
    /// All state on the filesystem that holds a path.
    UnlockFilesystem = 17,
    /// All state under an exported path.
    UnlockExport = 18,
}

/// Why nfsd does not do a netlink command.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error(
        "the kernel has no netlink family `{FAMILY}`: nfsd is not loaded (`modprobe nfsd`), or is older than 6.7"
    )]
    NoFamily,
    #[error("this kernel's netlink family `{FAMILY}` has no command {0:?} (requires 7.2)")]
    NoCommand(Command),
    #[error("netlink: cannot {action}")]
    Io {
        action: &'static str,
        source: io::Error,
    },
    #[error("netlink: cannot parse the kernel's answer")]
    Answer(#[from] DecodeError),
    #[error("the kernel refused {command:?} of {argument} over netlink")]
    Refused {
        command: Command,
        argument: String,
        source: io::Error,
    },
}

/// The family as this kernel offers it.
pub struct NfsdNetlink {
    socket: Socket,
    family: u16,
    commands: Vec<u32>,
}

impl NfsdNetlink {
    pub fn open() -> Result<Self, NetlinkError> {
        let io = |action| move |source| NetlinkError::Io { action, source };
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(io("open a socket"))?;
        socket.bind_auto().map_err(io("bind a socket"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(io("reach the kernel"))?;

        let ask = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        });
        let answer = match exchange(&socket, ask)? {
            Answer::Message(message) => message.payload,
            Answer::Done => return Err(NetlinkError::NoFamily),
            Answer::Refused(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NetlinkError::NoFamily);
            }
            Answer::Refused(source) => {
                return Err(NetlinkError::Io {
                    action: "look up nfsd's family",
                    source,
                });
            }
        };
        let (family, commands) = family_and_commands(&answer.nlas).ok_or(NetlinkError::NoFamily)?;
        Ok(NfsdNetlink {
            socket,
            family,
            commands,
        })
    }

    pub fn offers(&self, command: Command) -> bool {
        self.commands.contains(&(command as u32))
    }

    /// Releases the locks taken through `vip`, if the kernel does as it says.
    pub fn unlock_ip(&self, vip: IpAddr) -> Result<(), NetlinkError> {
        self.run(
            Command::UnlockIp,
            sockaddr(vip.to_canonical()),
            vip.to_string(),
        )
    }

    pub fn unlock_filesystem(&self, path: &Path) -> Result<(), NetlinkError> {
        self.run(
            Command::UnlockFilesystem,
            c_string(path),
            path.display().to_string(),
        )
    }

    pub fn unlock_export(&self, path: &Path) -> Result<(), NetlinkError> {
        self.run(
            Command::UnlockExport,
            c_string(path),
            path.display().to_string(),
        )
    }

    fn run(&self, command: Command, value: Vec<u8>, argument: String) -> Result<(), NetlinkError> {
        if !self.offers(command) {
            return Err(NetlinkError::NoCommand(command));
        }
        // Each of the three commands has one attribute, and its number is 1.
        let call = NfsdCall {
            command: command as u8,
            attribute: DefaultNla::new(1, value),
        };
        let mut message = GenlMessage::from_payload(call);
        message.set_resolved_family_id(self.family);
        match exchange(&self.socket, message)? {
            Answer::Refused(source) => Err(NetlinkError::Refused {
                command,
                argument,
                source,
            }),
            Answer::Done | Answer::Message(_) => Ok(()),
        }
    }
}

/// The family's number and the numbers of its commands.
fn family_and_commands(attributes: &[GenlCtrlAttrs]) -> Option<(u16, Vec<u32>)> {
    let family = attributes.iter().find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(id) => Some(*id),
        _ => None,
    })?;
    let operations = attributes.iter().filter_map(|attribute| match attribute {
        GenlCtrlAttrs::Ops(operations) => Some(operations),
        _ => None,
    });
    let commands = operations
        .flatten()
        .flatten()
        .filter_map(|attribute| match attribute {
            OpAttrs::Id(command) => Some(*command),
            OpAttrs::Flags(_) => None,
        });
    Some((family, commands.collect()))
}

enum Answer<T> {
    Message(GenlMessage<T>),
    Done,
    Refused(io::Error),
}

/// Sends one request and reads up to its end: a message and its
/// acknowledgement, the acknowledgement alone, or an error.
fn exchange<T>(socket: &Socket, mut request: GenlMessage<T>) -> Result<Answer<T>, NetlinkError>
where
    GenlMessage<T>: NetlinkSerializable + NetlinkDeserializable,
    <GenlMessage<T> as NetlinkDeserializable>::Error: Into<DecodeError>,
    T: GenlFamily + Emitable + Clone + std::fmt::Debug + ParseableParametrized<[u8], GenlHeader>,
{
    request.finalize();
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(|source| NetlinkError::Io {
        action: "send a request",
        source,
    })?;

    let mut found = None;
    loop {
        let (bytes, _) = socket.recv_from_full().map_err(|source| NetlinkError::Io {
            action: "read an answer",
            source,
        })?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<GenlMessage<T>>::deserialize(rest)?;
            rest = rest
                .get(message.header.length.next_multiple_of(4) as usize..)
                .unwrap_or(&[]);
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => found = Some(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Ok(Answer::Refused(error.to_io()));
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                    return Ok(found.map_or(Answer::Done, Answer::Message));
                }
                _ => {}
            }
        }
    }
}

/// A command of nfsd's family with its one attribute.
#[derive(Clone, Debug)]
struct NfsdCall {
    command: u8,
    attribute: DefaultNla,
}

impl GenlFamily for NfsdCall {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for NfsdCall {
    fn buffer_len(&self) -> usize {
        self.attribute.buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attribute.emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for NfsdCall {
    /// These commands answer with an acknowledgement alone.
    fn parse_with_param(_: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Err(DecodeError::from(format!(
            "an answer to command {} was not expected",
            header.cmd
        )))
    }
}

fn c_string(path: &Path) -> Vec<u8> {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A `sockaddr_in` (16 bytes) or `sockaddr_in6` (28 bytes) with port 0.
fn sockaddr(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = AddressFamily::INET.as_raw().to_ne_bytes().to_vec();
            bytes.extend([0; 2]);
            bytes.extend(v4.octets());
            bytes.extend([0; 8]);
            bytes
        }
        IpAddr::V6(v6) => {
            let mut bytes = AddressFamily::INET6.as_raw().to_ne_bytes().to_vec();
            bytes.extend([0; 6]);
            bytes.extend(v6.octets());
            bytes.extend([0; 4]);
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockaddr_has_the_length_of_its_family() {
        let v4 = sockaddr("10.77.0.1".parse().unwrap());
        assert_eq!(v4.len(), size_of::<libc::sockaddr_in>());
        assert_eq!(v4[4..8], [10, 77, 0, 1]);
        let v6 = sockaddr("fd77::1".parse().unwrap());
        assert_eq!(v6.len(), size_of::<libc::sockaddr_in6>());
        assert_eq!(v6[8..10], [0xfd, 0x77]);
        assert_eq!(v6[23], 1);
    }

    #[test]
    fn finds_the_familys_commands() {
        let attributes = [
            GenlCtrlAttrs::FamilyName("nfsd".into()),
            GenlCtrlAttrs::FamilyId(31),
            GenlCtrlAttrs::Ops(vec![
                vec![OpAttrs::Id(1), OpAttrs::Flags(14)],
                vec![OpAttrs::Id(16), OpAttrs::Flags(11)],
            ]),
        ];
        assert_eq!(family_and_commands(&attributes), Some((31, vec![1, 16])));
        assert_eq!(family_and_commands(&attributes[..1]), None);
    }

    #[test]
    fn a_call_is_one_padded_attribute() {
        let call = NfsdCall {
            command: Command::UnlockExport as u8,
            attribute: DefaultNla::new(1, c_string(Path::new("/srv"))),
        };
        let mut bytes = vec![0xaa; call.buffer_len()];
        call.emit(&mut bytes);
        assert_eq!(bytes, [9, 0, 1, 0, b'/', b's', b'r', b'v', 0, 0, 0, 0]);
    }

    #[test]
    fn the_kernel_answers_a_look_up() {
        // nfsd may or may not be on the machine that tests: both are answers,
        // and any other error is not.
        match NfsdNetlink::open() {
            Ok(_) | Err(NetlinkError::NoFamily) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
