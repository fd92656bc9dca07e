//! Where the choices of a case come from: a seed, or bytes that a shrinker or a fuzzer changes.

/// A stream of choices. The same seed, or the same bytes, give the same case.
#[derive(Debug)]
pub struct Tape<'a> {
    source: Source<'a>,
}

#[derive(Debug)]
enum Source<'a> {
    Seed(u64),
    /// Followed by zeros without end; zeros choose what is plain.
    Bytes(&'a [u8]),
}

impl<'a> Tape<'a> {
    /// All cases that a seed leads to.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self {
            source: Source::Seed(seed),
        }
    }

    /// The case that bytes spell.
    #[must_use]
    pub const fn of(bytes: &'a [u8]) -> Self {
        Self {
            source: Source::Bytes(bytes),
        }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        match &mut self.source {
            Source::Seed(state) => {
                let word = splitmix(state).to_le_bytes();
                for (to, from) in taken.iter_mut().zip(word) {
                    *to = from;
                }
            }
            Source::Bytes(bytes) => {
                let (now, later) = bytes.split_at(N.min(bytes.len()));
                for (to, from) in taken.iter_mut().zip(now) {
                    *to = *from;
                }
                *bytes = later;
            }
        }
        taken
    }

    /// Any byte.
    pub fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    /// Any number.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// Any number.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// Any number.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// A number below `bound`, which must not be 0; the bias is of no account here.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound <= 256 {
            return usize::from(self.u8()) % bound;
        }
        usize::try_from(self.u32()).unwrap_or_default() % bound
    }

    /// True in one of `n` cases, and never at the end of the bytes.
    pub fn chance(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// One of several.
    pub fn pick<'t, T>(&mut self, all: &'t [T]) -> &'t T {
        &all[self.below(all.len())]
    }

    /// So many bytes that cost few choices.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut state = self.u64();
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = splitmix(&mut state).to_le_bytes();
        }
        for (to, from) in rest.iter_mut().zip(splitmix(&mut state).to_le_bytes()) {
            *to = from;
        }
    }

    /// A vector of [`Self::fill`].
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// The generator of Steele, Lea and Flood (2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
