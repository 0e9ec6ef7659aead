//! Memory that is not needed any more, back to the kernel.

/// All threads share one heap: they allocate little, and what a heap of their own keeps free is lost to the
/// others. Before any thread is started.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; refused, it changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back the free pages of the heap, those between used ones too.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn free_pages_between_used_ones_go_back() {
        const SIZE: usize = 64 << 20;
        // Whoever else is tested in this process takes and gives meanwhile.
        let shrinks = |_| {
            // Small enough not to be mapped by themselves; one in a thousand stays.
            let mut all: Vec<Option<Box<[u8]>>> = (0..SIZE / 4096).map(|_| Some(vec![1; 4096].into())).collect();
            all.iter_mut().enumerate().filter(|(n, _)| n % 1000 != 0).for_each(|(_, piece)| *piece = None);
            let before = resident();
            give_back();
            let gone = before.saturating_sub(resident());
            drop(all);
            gone > SIZE / 2
        };
        assert!((0..20).any(shrinks));
    }
}
