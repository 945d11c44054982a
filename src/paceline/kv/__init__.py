"""Key and value caches: pools on the device. One page table serves target and drafter."""
