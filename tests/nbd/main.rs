//! The NBD server with real clients (libnbd's tools, qemu's, fio) and with raw sockets, in this process, over a file.

mod clients;
mod file;
mod measure;
mod raw;
mod setup;
mod tools;
