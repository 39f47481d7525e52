//! The socket in D: other processes ask the running `dev` for changes.
//!
//! One connection carries one request, a line of JSON, and one reply, a line of JSON. The socket is reached through the
//! directory's file descriptor (`/proc/self/fd/N/dev.sock`), because a socket's path is limited to 108 bytes and D's
//! isn't.
//!
//! Non-goals: access control. The directory's permissions decide who reaches the socket.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::args::DevSignal;

const SOCKET: &str = "dev.sock";
/// A request or reply is a few hundred bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// A client that connected sends its line at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the longest operation, a node's start.
const REPLY_TIMEOUT: Duration = Duration::from_secs(180);

/// What a process may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Request {
    #[serde(rename = "add-node")]
    Add {
        disk_size_bytes: u64,
        disks: u32,
        #[serde(default)]
        class: String,
    },
    #[serde(rename = "kill-node")]
    Kill { name: String, signal: DevSignal },
    #[serde(rename = "start-node")]
    Start { name: String },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Ok(serde_json::Value),
    Error(String),
}

/// Why a request didn't come through.
#[derive(Debug, thiserror::Error)]
pub enum AskDev {
    #[error("no `evenkeel dev` runs on {dir} ({source}); start one with `evenkeel dev --dir {dir}`")]
    NotRunning { dir: PathBuf, source: io::Error },
    #[error("the `evenkeel dev` on {dir} did not answer ({source}); it may have ended")]
    NoAnswer { dir: PathBuf, source: io::Error },
    #[error("{0}")]
    Refused(String),
}

/// Sends a request to the `dev` that runs on D, and waits for its end.
///
/// # Errors
/// Nobody runs on D, or the request failed there.
pub fn ask(dir: &Path, request: &Request) -> Result<serde_json::Value, AskDev> {
    let not_running = |source| AskDev::NotRunning { dir: dir.to_owned(), source };
    let no_answer = |source| AskDev::NoAnswer { dir: dir.to_owned(), source };
    let folder = File::open(dir).map_err(not_running)?;
    let mut stream = UnixStream::connect(socket_path(&folder)).map_err(not_running)?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(no_answer)?;
    write_line(&mut stream, request).map_err(no_answer)?;
    match read_line(&stream).map_err(no_answer)? {
        Reply::Ok(value) => Ok(value),
        Reply::Error(text) => Err(AskDev::Refused(text)),
    }
}

/// Makes the socket, in place of one that an earlier `dev` left. The caller holds D's lock.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(dir.join(SOCKET)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let folder = File::open(dir)?;
    UnixListener::bind(socket_path(&folder))
}

/// Reads one request, has it answered, and sends the reply.
pub fn serve(mut stream: UnixStream, answer: impl FnOnce(Request) -> Result<serde_json::Value, String>) {
    // The asker may be gone before the reply; the work is done anyway.
    let _ = stream.set_read_timeout(Some(REQUEST_TIMEOUT));
    let _ = stream.set_write_timeout(Some(REQUEST_TIMEOUT));
    let reply = match read_line(&stream) {
        Ok(request) => match answer(request) {
            Ok(value) => Reply::Ok(value),
            Err(text) => Reply::Error(text),
        },
        Err(e) => Reply::Error(format!("the request is not understood: {e}")),
    };
    let _ = write_line(&mut stream, &reply);
}

fn socket_path(folder: &File) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())
}

fn read_line<T: serde::de::DeserializeOwned>(stream: &UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_even_under_a_very_long_path() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("d".repeat(120));
        std::fs::create_dir(&dir).unwrap();
        let listener = listen(&dir).unwrap();
        let request = Request::Kill { name: "n2".into(), signal: DevSignal::Stop };
        let expected = request.clone();
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                let (stream, _) = listener.accept().unwrap();
                serve(stream, |r| if r == expected { Ok("done".into()) } else { Err("something else".into()) });
            }
        });
        assert_eq!(ask(&dir, &request).unwrap(), "done");
        let other = Request::Start { name: "n2".into() };
        assert!(matches!(ask(&dir, &other), Err(AskDev::Refused(text)) if text == "something else"));
        server.join().unwrap();
        assert!(matches!(ask(&dir, &other), Err(AskDev::NotRunning { .. })), "the socket is left, nobody serves it");
        listen(&dir).unwrap();
    }

    #[test]
    fn garbage_is_answered_with_an_error() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"{\"op\":\"explode\"}\n").unwrap();
        serve(server, |_| unreachable!("the request has no meaning"));
        assert!(matches!(read_line(&client).unwrap(), Reply::Error(text) if text.contains("not understood")));
    }
}
