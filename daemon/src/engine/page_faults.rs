//! How often this process touched memory that the kernel had to find first.
//!
//! What does not live here: who is told; see `workshop`.

/// Page faults of all threads since the last look, or since the start.
#[derive(Debug, Default)]
pub struct PageFaults {
    seen: u64,
}

impl PageFaults {
    /// How many there were since it was called last.
    pub fn take(&mut self) -> u64 {
        let count = count();
        let new = count.saturating_sub(self.seen);
        self.seen = count;
        new
    }
}

fn count() -> u64 {
    // SAFETY: all zeros are a valid value of this struct of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes such a struct to where the pointer shows.
    let code = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    if code != 0 {
        return 0;
    }
    u64::try_from(usage.ru_minflt).unwrap_or(0) + u64::try_from(usage.ru_majflt).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_memory_costs_a_fault_for_each_page_and_used_memory_none() {
        const PAGE_COUNT: u64 = 1000;
        let mut faults = PageFaults::default();
        // Pages of this size at most: larger ones are only used from 2 MiB on.
        let mut memory = vec![0u8; PAGE_COUNT as usize * 4096];
        faults.take();
        for page in memory.chunks_mut(4096) {
            page[0] = 1;
        }
        let fresh = faults.take();
        for page in memory.chunks_mut(4096) {
            page[0] = 2;
        }
        let used = faults.take();
        assert!(fresh > 0 && used < fresh.min(10), "{fresh} and {used}");
        std::hint::black_box(&memory);
    }
}
