//! A file with its writes that are not stable yet.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

const PAGE: u64 = 4096;

/// Pages in memory lie over the file below.
pub struct Pages {
    file: File,
    /// `None` is a page of zeros: a hole that was punched.
    unstable: BTreeMap<u64, Option<Box<[u8]>>>,
}

impl Pages {
    pub fn new(file: File) -> Self {
        Pages { file, unstable: BTreeMap::new() }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn unstable(&self) -> u64 {
        self.unstable.len() as u64
    }

    /// What is there, up to the file's end.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = self.file.metadata()?.len().min(offset + len as u64);
        let mut data = vec![0; usize::try_from(end.saturating_sub(offset)).expect("fits")];
        self.file.read_exact_at(&mut data, offset)?;
        for (page, content) in self.unstable.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = page * PAGE;
            let (from, to) = (start.max(offset), (start + PAGE).min(end));
            let into = &mut data[(from - offset) as usize..(to - offset) as usize];
            match content {
                Some(bytes) => into.copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]),
                None => into.fill(0),
            }
        }
        Ok(data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        if end > self.file.metadata()?.len() {
            self.file.set_len(end)?;
        }
        for page in offset / PAGE..end.div_ceil(PAGE) {
            let start = page * PAGE;
            let (from, to) = (start.max(offset), (start + PAGE).min(end));
            let mut content = self.page(page)?;
            content[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            self.unstable.insert(page, Some(content));
        }
        Ok(())
    }

    /// These bytes alone become stable.
    pub fn write_stable(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)?;
        let end = offset + data.len() as u64;
        for page in offset / PAGE..end.div_ceil(PAGE) {
            if self.unstable.contains_key(&page) {
                let start = page * PAGE;
                let (from, to) = (start.max(offset), (start + PAGE).min(end));
                let mut content = self.page(page)?;
                content[(from - start) as usize..(to - start) as usize]
                    .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
                self.unstable.insert(page, Some(content));
            }
        }
        Ok(())
    }

    /// Whole pages become holes in memory; the ragged ends are zeroed.
    pub fn punch(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = (offset + len).min(self.file.metadata()?.len());
        let mut at = offset;
        while at < end {
            let next = ((at / PAGE + 1) * PAGE).min(end);
            if next - at == PAGE {
                self.unstable.insert(at / PAGE, None);
            } else {
                self.write(at, &vec![0; (next - at) as usize])?;
            }
            at = next;
        }
        Ok(())
    }

    /// Takes everything below.
    pub fn sync(&mut self) -> io::Result<()> {
        self.keep(|_| true).map(|_| ())
    }

    /// Forgets what isn't stable, but for the pages that `survives` names. Gives how many were lost.
    pub fn keep(&mut self, mut survives: impl FnMut(u64) -> bool) -> io::Result<u64> {
        let mut lost = 0;
        for (page, content) in std::mem::take(&mut self.unstable) {
            if !survives(page) {
                lost += 1;
                continue;
            }
            let (start, size) = (page * PAGE, self.file.metadata()?.len());
            match content {
                // Never past the end: a page in memory is whole, the file may be shorter.
                Some(bytes) => {
                    self.file.write_all_at(&bytes[..size.saturating_sub(start).min(PAGE) as usize], start)?
                }
                None => {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&self.file, flags, start, PAGE)?;
                }
            }
        }
        Ok(lost)
    }

    pub fn set_len(&mut self, len: u64) -> io::Result<()> {
        // What is cut off must read as zeros if the file grows again.
        if let Some(Some(content)) = self.unstable.get_mut(&(len / PAGE)) {
            content[(len % PAGE) as usize..].fill(0);
        }
        self.unstable.retain(|page, _| page * PAGE < len);
        self.file.set_len(len)
    }

    fn page(&self, page: u64) -> io::Result<Box<[u8]>> {
        match self.unstable.get(&page) {
            Some(Some(content)) => Ok(content.clone()),
            Some(None) => Ok(vec![0; PAGE as usize].into()),
            None => {
                let mut content = vec![0; PAGE as usize];
                let mut done = 0;
                while done < content.len() {
                    match self.file.read_at(&mut content[done..], page * PAGE + done as u64)? {
                        0 => break,
                        n => done += n,
                    }
                }
                Ok(content.into())
            }
        }
    }
}
