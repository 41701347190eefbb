// SPDX-License-Identifier: Apache-2.0
//! A client of the store (xen/io/xs_wire.h) over the connection that a domain gets when it joins.

use crate::sys::readable;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

const MAX_PAYLOAD: usize = 4096;

#[derive(Clone, Copy, PartialEq)]
#[repr(u32)]
enum Type {
    Read = 2,
    Watch = 4,
    TransactionStart = 6,
    TransactionEnd = 7,
    Write = 11,
    Rm = 13,
    WatchEvent = 15,
    Error = 16,
}

/// The store as this domain sees it. A relative path begins at /local/domain/<own domid>/.
pub struct Store {
    stream: UnixStream,
    request: u32,
    watch_fired: bool,
}

impl Store {
    pub(crate) fn new(fd: OwnedFd) -> Store {
        Store { stream: UnixStream::from(fd), request: 0, watch_fired: false }
    }

    /// A node's value; None if there is no such node. `tx` is a transaction, 0 for none.
    pub fn read(&mut self, tx: u32, path: &str) -> io::Result<Option<String>> {
        match self.call(Type::Read, tx, &[path.as_bytes(), b"\0"]) {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn write(&mut self, tx: u32, path: &str, value: &str) -> io::Result<()> {
        self.call(Type::Write, tx, &[path.as_bytes(), b"\0", value.as_bytes()]).map(drop)
    }

    pub fn remove(&mut self, tx: u32, path: &str) -> io::Result<()> {
        self.call(Type::Rm, tx, &[path.as_bytes(), b"\0"]).map(drop)
    }

    /// Run `body` in a transaction, again as often as another client changes one of its nodes meanwhile.
    pub fn transact(&mut self, mut body: impl FnMut(&mut Store, u32) -> io::Result<()>) -> io::Result<()> {
        loop {
            let text = self.call(Type::TransactionStart, 0, &[b"\0"])?;
            let tx = String::from_utf8_lossy(&text).trim_end_matches('\0').parse().map_err(|_| malformed())?;
            body(self, tx)?;
            match self.call(Type::TransactionEnd, tx, &[b"T\0"]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                done => return done.map(drop),
            }
        }
    }

    /// Watch a path and all below it. The watch fires once at the beginning.
    pub fn watch(&mut self, path: &str) -> io::Result<()> {
        self.call(Type::Watch, 0, &[path.as_bytes(), b"\0watch\0"]).map(drop)
    }

    /// Wait until a watch has fired since the last call; false after so many milliseconds.
    pub fn wait_watch(&mut self, milliseconds: i32) -> io::Result<bool> {
        while !self.watch_fired {
            if !readable(self.stream.as_raw_fd(), milliseconds)? {
                return Ok(false);
            }
            self.message()?;
        }
        self.watch_fired = false;
        Ok(true)
    }

    fn call(&mut self, kind: Type, tx: u32, parts: &[&[u8]]) -> io::Result<Vec<u8>> {
        let payload = parts.concat();
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::new(ErrorKind::InvalidInput, "the payload is too long"));
        }
        self.request += 1;
        let header = [kind as u32, self.request, tx, payload.len() as u32];
        let mut packet: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        packet.extend(payload);
        self.stream.write_all(&packet)?;
        loop {
            let (kind, request, payload) = self.message()?;
            if kind == Type::WatchEvent as u32 || request != self.request {
                continue;
            }
            if kind == Type::Error as u32 {
                return Err(store_error(&String::from_utf8_lossy(&payload)));
            }
            return Ok(payload);
        }
    }

    fn message(&mut self) -> io::Result<(u32, u32, Vec<u8>)> {
        let mut header = [0u8; 16];
        self.stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        if word(12) as usize > MAX_PAYLOAD {
            return Err(malformed());
        }
        let mut payload = vec![0u8; word(12) as usize];
        self.stream.read_exact(&mut payload)?;
        self.watch_fired |= word(0) == Type::WatchEvent as u32;
        Ok((word(0), word(4), payload))
    }
}

fn malformed() -> Error {
    Error::new(ErrorKind::InvalidData, "the store's message is malformed")
}

fn store_error(name: &str) -> Error {
    let kind = match name.trim_end_matches('\0') {
        "ENOENT" => ErrorKind::NotFound,
        "EACCES" => ErrorKind::PermissionDenied,
        "EAGAIN" => ErrorKind::WouldBlock,
        "EEXIST" => ErrorKind::AlreadyExists,
        "EINVAL" => ErrorKind::InvalidInput,
        _ => ErrorKind::Other,
    };
    Error::new(kind, format!("the store answers {}", name.trim_end_matches('\0')))
}
