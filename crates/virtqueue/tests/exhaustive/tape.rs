//! A choice at each step, all of them in turn.

/// What was chosen so far, and of how many; from a run's end to the next one's beginning, what to choose.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    chosen: Vec<(usize, usize)>,
    at: usize,
}

impl Tape {
    /// One of `options`. All of them are chosen, run by run, with all that comes after each.
    pub(crate) fn choose<T: Clone>(&mut self, options: &[T]) -> T {
        if self.at == self.chosen.len() {
            self.chosen.push((0, options.len()));
        }
        let (choice, of) = self.chosen[self.at];
        assert_eq!(of, options.len(), "the same steps lead to the same choice");
        self.at += 1;
        options[choice].clone()
    }

    /// Runs `run` with each series of choices, and says how many there were.
    pub(crate) fn all(mut run: impl FnMut(&mut Self)) -> usize {
        let mut tape = Self::default();
        for runs in 1.. {
            tape.at = 0;
            run(&mut tape);
            tape.chosen.truncate(tape.at);
            while let Some((choice, of)) = tape.chosen.pop() {
                if choice + 1 < of {
                    tape.chosen.push((choice + 1, of));
                    break;
                }
            }
            if tape.chosen.is_empty() {
                return runs;
            }
        }
        unreachable!("usize::MAX runs")
    }
}

#[test]
fn all_series_are_run_once() {
    let mut seen = Vec::new();
    let runs = Tape::all(|tape| {
        let first = tape.choose(&[0, 1, 2]);
        let second = if first == 1 { tape.choose(&[7, 8]) } else { 0 };
        seen.push((first, second));
    });
    assert_eq!(seen, [(0, 0), (1, 7), (1, 8), (2, 0)]);
    assert_eq!(runs, 4);
}
