//! When an index passes an event index.

/// Whether moving an index from `old` to `new` passed entry `event` (virtio 1.4, 2.7.7.1): the
/// event is one of `old .. new`, all three being free-running and wrapping.
#[doc(alias = "vring_need_event")]
#[inline]
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::need_event;

    /// The words of the specification, by counting.
    fn passed(event: u16, new: u16, old: u16) -> bool {
        let mut at = old;
        while at != new {
            if at == event {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    #[test]
    fn an_event_is_seen_exactly_when_it_was_passed_around_the_wrap() {
        let near: Vec<u16> = (0xffe0..=0xffff).chain(0..0x20).collect();
        for &old in &near {
            for step in 0..40_u16 {
                let new = old.wrapping_add(step);
                for &event in &near {
                    assert_eq!(
                        need_event(event, new, old),
                        passed(event, new, old),
                        "event {event} new {new} old {old}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_of_all_events_is_seen_for_steps_of_every_kind() {
        for event in 0..=u16::MAX {
            for (new, old) in [
                (0_u16, 0xffff_u16),
                (1, 0xff00),
                (0x8000, 0),
                (5, 5),
                (0xffff, 0),
            ] {
                let in_range = event.wrapping_sub(old) < new.wrapping_sub(old);
                assert_eq!(need_event(event, new, old), in_range, "{event} {new} {old}");
            }
        }
    }
}
