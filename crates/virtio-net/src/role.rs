//! What each queue is for.

use virtio::net::F as NetF;
use virtqueue::QueueIndex;

/// What one of the device's queues is for (virtio 1.4, 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Rx(usize),
    Tx(usize),
    Ctrl,
}

/// What queue `index` of a device with `pairs` queue pairs is for: receive and transmit queues by turns, then
/// the control queue. Without `VIRTIO_NET_F_MQ` and `VIRTIO_NET_F_RSS` only the first pair is in use, so the
/// control queue is the third (virtio 1.4, 5.1.2).
pub(crate) fn role(index: QueueIndex, features: NetF, pairs: usize) -> Option<Role> {
    let pairs = if features.intersects(NetF::MQ | NetF::RSS) {
        pairs
    } else {
        1
    };
    let index = usize::from(index.0);
    if index < 2 * pairs {
        let pair = index / 2;
        Some(if index.is_multiple_of(2) {
            Role::Rx(pair)
        } else {
            Role::Tx(pair)
        })
    } else if index == 2 * pairs && features.contains(NetF::CTRL_VQ) {
        Some(Role::Ctrl)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_queue_comes_after_the_pairs_that_are_in_use() {
        let mq = NetF::MQ | NetF::CTRL_VQ;
        let table = [
            (0, NetF::empty(), 1, Some(Role::Rx(0))),
            (1, NetF::empty(), 1, Some(Role::Tx(0))),
            (2, NetF::empty(), 1, None),
            (2, NetF::CTRL_VQ, 1, Some(Role::Ctrl)),
            (3, NetF::CTRL_VQ, 1, None),
            (2, NetF::CTRL_VQ, 4, Some(Role::Ctrl)),
            (3, NetF::CTRL_VQ, 4, None),
            (8, NetF::CTRL_VQ, 4, None),
            (2, mq, 4, Some(Role::Rx(1))),
            (7, mq, 4, Some(Role::Tx(3))),
            (8, mq, 4, Some(Role::Ctrl)),
            (9, mq, 4, None),
            (8, NetF::MQ, 4, None),
            (8, NetF::RSS | NetF::CTRL_VQ, 4, Some(Role::Ctrl)),
            (u16::MAX, mq, 4, None),
        ];
        for (index, features, pairs, expected) in table {
            assert_eq!(
                role(QueueIndex(index), features, pairs),
                expected,
                "queue {index} of {pairs} pairs with {features:?}"
            );
        }
    }
}
