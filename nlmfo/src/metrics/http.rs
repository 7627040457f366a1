//! A small HTTP server for scrapes.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::{self, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Shared;

/// Connections at a time; more wait.
const CONNECTIONS: usize = 8;

/// Maximum time of a connection. Prometheus opens another.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);

/// Wait after an error that persists for a while, such as too many open files.
const RETRY: Duration = Duration::from_secs(1);

/// Of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A socket on which no connections are accepted yet. Its address belongs to the network and mount
/// namespaces where it was bound.
#[derive(Debug)]
pub enum Bound {
    Tcp(net::TcpListener),
    Unix(unix::UnixListener, SocketFile),
}

impl Bound {
    /// # Errors
    /// The address is in use, or not this node's.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Bound::Tcp(listener))
    }

    /// A socket that only root can open. One that no process listens on any more is replaced.
    ///
    /// # Errors
    /// Another process listens on it, or it is no socket.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let is_socket = |meta: &std::fs::Metadata| meta.file_type().is_socket();
        if std::fs::symlink_metadata(path).is_ok_and(|meta| is_socket(&meta)) {
            match unix::UnixStream::connect(path) {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(_) => std::fs::remove_file(path)?,
            }
        }
        let listener = unix::UnixListener::bind(path)?;
        let file = SocketFile(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Bound::Unix(listener, file))
    }
}

/// The listener for scrapes.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// The file is removed when it is dropped.
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "dropping it removes the file")] SocketFile,
    ),
}

/// The file of a Unix socket, removed with it.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing depends on it: the next one replaces what is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Registers it with the asynchronous runtime of this thread.
    ///
    /// # Errors
    /// It cannot be registered there.
    pub fn new(bound: Bound) -> io::Result<Self> {
        Ok(match bound {
            Bound::Tcp(tcp) => Listener::Tcp(TcpListener::from_std(tcp)?),
            Bound::Unix(unix, file) => Listener::Unix(UnixListener::from_std(unix)?, file),
        })
    }

    /// Answers scrapes for as long as it is polled.
    pub async fn serve(&self, shared: &Shared) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                // It is never closed.
                return pending().await;
            };
            let shared = shared.clone();
            let accepted = match self {
                Listener::Tcp(tcp) => tcp.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        connection(stream, shared).await;
                        drop(place);
                    })
                }),
                Listener::Unix(unix, _) => unix.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        connection(stream, shared).await;
                        drop(place);
                    })
                }),
            };
            if accepted.is_err() {
                sleep(RETRY).await;
            }
        }
    }
}

/// An error concerns the client: it disconnected, or did not send HTTP.
async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, shared: Shared) {
    let service = service_fn(move |request| answer(request, shared.clone()));
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = timeout(CONNECTION_TIMEOUT, served).await;
}

fn answer(
    request: Request<Incoming>,
    shared: Shared,
) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, shared.text()),
        (&Method::GET | &Method::HEAD, "/") => (
            StatusCode::OK,
            "nlmfo: metrics are at /metrics\n".to_owned(),
        ),
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    std::future::ready(Ok(response))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    use tokio::net::UnixStream;

    async fn ask(path: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scrape_is_answered_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let listener = Bound::unix(&path).unwrap();
        let used = Bound::unix(&path).unwrap_err();
        assert_eq!(used.kind(), io::ErrorKind::AddrInUse);
        let listener = Listener::new(listener).unwrap();
        let shared = Shared::default();
        let asked = async {
            for (line, status, part) in [
                ("GET /metrics", "200", "nlmfo_info"),
                ("GET /", "200", "/metrics"),
                ("GET /else", "404", "not found"),
                ("POST /metrics", "405", "use GET"),
            ] {
                let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                let answer = ask(&path, &request).await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status}")),
                    "{answer}"
                );
                assert!(answer.contains(part), "{answer}");
            }
        };
        tokio::select! {
            () = listener.serve(&shared) => unreachable!("it serves for ever"),
            () = asked => {}
        }
        drop(listener);
        assert!(!path.exists());
    }
}
