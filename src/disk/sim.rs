//! A file in memory that behaves as a disk does at a power cut: of what wasn't synced, each 512 B sector holds any of
//! the versions written since the last sync, or the one before. It can also fail or lie about syncs, be full, and
//! flip bits.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::backend::Backend;

const SECTOR: u64 = 512;
type Sector = [u8; SECTOR as usize];

#[derive(Clone)]
pub struct SimFile(Arc<Mutex<Sim>>);

struct Sim {
    stable: HashMap<u64, Sector>,
    current: HashMap<u64, Sector>,
    /// Versions written since the sector was stable.
    unsynced: BTreeMap<u64, Vec<Sector>>,
    len: u64,
    rng: StdRng,
    /// Calls that change something until the power goes.
    ops_left: Option<u64>,
    powered_off: bool,
    faults: Faults,
}

/// What goes wrong besides power cuts.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// A sync fails; so what was written may or may not get to the disk.
    pub sync_fails: bool,
    /// A sync says that it worked and does nothing: the checker must notice.
    pub sync_lies: bool,
    /// Writes to sectors never written fail for want of space.
    pub full: bool,
    /// Punching isn't known; new sectors don't read as zeros: a block device.
    pub is_device: bool,
}

impl SimFile {
    pub fn new(len: u64, seed: u64, faults: Faults) -> Self {
        SimFile(Arc::new(Mutex::new(Sim {
            stable: HashMap::new(),
            current: HashMap::new(),
            unsynced: BTreeMap::new(),
            len,
            rng: StdRng::seed_from_u64(seed),
            ops_left: None,
            powered_off: false,
            faults,
        })))
    }

    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    /// Cuts the power in the middle of the n-th change from now.
    pub fn power_off_after(&self, ops: Option<u64>) {
        self.0.lock().ops_left = ops;
    }

    pub fn is_powered_off(&self) -> bool {
        self.0.lock().powered_off
    }

    /// Cuts the power, loses what is lost, and comes back.
    pub fn power_cycle(&self) {
        let sim = &mut *self.0.lock();
        // Some cuts lose all or nothing; most tear.
        let keep = [Some(0.0), Some(1.0), None, None, None][sim.rng.random_range(0..5)];
        for (sector, versions) in std::mem::take(&mut sim.unsynced) {
            let survivor = match keep {
                Some(p) if p > 0.5 => versions.len(),
                Some(_) => 0,
                None => sim.rng.random_range(0..=versions.len()),
            };
            if survivor > 0 {
                sim.stable.insert(sector, versions[survivor - 1]);
            }
        }
        sim.current = sim.stable.clone();
        sim.powered_off = false;
        sim.ops_left = None;
    }

    /// Flips one stable bit at `offset`.
    pub fn flip(&self, offset: u64, bit: u8) {
        let sim = &mut *self.0.lock();
        for map in [&mut sim.stable, &mut sim.current] {
            map.entry(offset / SECTOR).or_insert([0; 512])[(offset % SECTOR) as usize] ^= 1 << (bit % 8);
        }
    }
}

impl Sim {
    /// Counts a change; true if the power goes in the middle of it.
    fn step(&mut self) -> io::Result<bool> {
        if self.powered_off {
            return Err(io::Error::from_raw_os_error(5));
        }
        let Some(left) = &mut self.ops_left else { return Ok(false) };
        *left = left.saturating_sub(1);
        self.powered_off = *left == 0;
        Ok(self.powered_off)
    }

    fn put(&mut self, buf: &[u8], offset: u64) {
        let (mut done, total) = (0u64, buf.len() as u64);
        while done < total {
            let at = offset + done;
            let (sector, start) = (at / SECTOR, (at % SECTOR) as usize);
            let n = (SECTOR as usize - start).min((total - done) as usize);
            let mut bytes = self.current.get(&sector).copied().unwrap_or([0; 512]);
            bytes[start..start + n].copy_from_slice(&buf[done as usize..done as usize + n]);
            self.current.insert(sector, bytes);
            self.unsynced.entry(sector).or_default().push(bytes);
            done += n as u64;
        }
    }

    fn settle(&mut self, sectors: std::ops::RangeInclusive<u64>) {
        let keys: Vec<u64> = self.unsynced.range(sectors).map(|(k, _)| *k).collect();
        for sector in keys {
            self.unsynced.remove(&sector);
            if let Some(bytes) = self.current.get(&sector) {
                self.stable.insert(sector, *bytes);
            }
        }
    }
}

fn power_failure() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Backend for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let sim = self.0.lock();
        if sim.powered_off {
            return Err(power_failure());
        }
        if offset + buf.len() as u64 > sim.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut done, total) = (0, buf.len());
        while done < total {
            let at = offset + done as u64;
            let start = (at % SECTOR) as usize;
            let n = (SECTOR as usize - start).min(total - done);
            match sim.current.get(&(at / SECTOR)) {
                Some(bytes) => buf[done..done + n].copy_from_slice(&bytes[start..start + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let sim = &mut *self.0.lock();
        let cut = sim.step()?;
        if sim.faults.full {
            // What has its space gets through.
            let has_space = |at: &u64| sim.current.contains_key(&(at / SECTOR));
            let end = offset + buf.len() as u64;
            let first_without = (offset..end).step_by(32).find(|at| !has_space(at)).unwrap_or(end);
            sim.put(&buf[..(first_without - offset) as usize], offset);
            return if first_without == end { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) };
        }
        sim.put(buf, offset);
        if cut { Err(power_failure()) } else { Ok(()) }
    }

    fn write_sync(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let sim = &mut *self.0.lock();
        let cut = sim.step()?;
        sim.put(buf, offset);
        if cut {
            return Err(power_failure());
        }
        sim.settle(offset / SECTOR..=(offset + buf.len() as u64 - 1) / SECTOR);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let sim = &mut *self.0.lock();
        if sim.step()? || sim.faults.sync_fails {
            return Err(power_failure());
        }
        if !sim.faults.sync_lies {
            sim.settle(0..=u64::MAX);
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let sim = &mut *self.0.lock();
        if sim.faults.is_device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let cut = sim.step()?;
        for sector in offset / SECTOR..(offset + len) / SECTOR {
            if sim.current.get(&sector).is_some_and(|b| *b != [0; 512]) {
                sim.current.insert(sector, [0; 512]);
                sim.unsynced.entry(sector).or_default().push([0; 512]);
            }
        }
        if cut { Err(power_failure()) } else { Ok(()) }
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        if self.0.lock().powered_off { Err(power_failure()) } else { Ok(()) }
    }

    fn new_reads_zero(&self) -> bool {
        !self.0.lock().faults.is_device
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len)
    }
}
