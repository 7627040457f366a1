//! Clients that are only an rpcbind and a statd, to notify many of them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nlmfo::rpc::{nsm, portmap};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::node::TestNode;

/// Listening until dropped.
pub struct Listeners {
    notified: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listeners {
    /// One at each address of the place, IPv4 only. The rpcbind says that statd is where
    /// itself is, so that one socket is both.
    /// Each SM_NOTIFY calls `heard` with the address that it came to.
    pub fn start(
        node: &TestNode,
        addresses: impl Iterator<Item = IpAddr>,
        heard: impl Fn(IpAddr) + Send + Sync + 'static,
    ) -> Result<Self> {
        let addresses: Vec<IpAddr> = addresses.collect();
        allow_files(addresses.len() as u64 + 1024)?;
        let sockets: Vec<UdpSocket> = node.within(|| {
            let bind = |&address| {
                let at = SocketAddr::new(address, portmap::PORT);
                let socket = UdpSocket::bind(at).with_context(|| at.to_string())?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            addresses.iter().map(bind).collect()
        })?;
        let notified = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let counter = notified.clone();
        let heard = Arc::new(heard);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                for (socket, address) in sockets.into_iter().zip(addresses) {
                    let socket = tokio::net::UdpSocket::from_std(socket).expect("a UDP socket");
                    let (counter, heard) = (counter.clone(), heard.clone());
                    let told = move || {
                        counter.fetch_add(1, Ordering::Relaxed);
                        heard(address);
                    };
                    tokio::spawn(listen(socket, told));
                }
                let _ = stopped.await;
            });
        });
        Ok(Listeners {
            notified,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// `SM_NOTIFYs` that have come to all of them, repetitions included.
    pub fn notified(&self) -> usize {
        self.notified.load(Ordering::Relaxed)
    }
}

/// Each socket is an open file.
fn allow_files(wanted: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard.max(wanted))
        .with_context(|| format!("allowing {wanted} open files"))
}

impl Drop for Listeners {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(socket: tokio::net::UdpSocket, told: impl Fn()) {
    let mut call = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut call).await {
        if let Some(reply) = answer(&call[..length], &told) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

/// To GETPORT the port, to SM_NOTIFY nothing but that it has come.
fn answer(call: &[u8], told: &impl Fn()) -> Option<Vec<u8>> {
    const REPLY: u32 = 1;
    let word = |at: usize| Some(u32::from_be_bytes(*call.get(4 * at..)?.first_chunk()?));
    // Its id, that it was accepted, with an empty verifier and success.
    let mut reply = vec![word(0)?, REPLY, 0, 0, 0, 0];
    if word(3)? == nsm::STATD.program {
        told();
    } else {
        reply.push(portmap::PORT.into());
    }
    Some(reply.into_iter().flat_map(u32::to_be_bytes).collect())
}
