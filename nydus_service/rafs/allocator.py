"""Allocates the places of records in a bootstrap's metadata area.

Records are placed one after the other in units of 32 bytes, because an inode number counts these units.
Directories and symlinks store the last part of their data after their inode if both fit one block. If the end
of a block stays free, later small records fill it: the free tails are kept by size, oldest first. Offsets are
relative to the metadata base. Its first block stays empty, so that no inode has number 0.
"""

from collections import deque

from nydus_service.rafs.constants import BLOCK_SIZE, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, SLOT_SIZE

_SLOTS = BLOCK_SIZE // SLOT_SIZE


class Allocator:
    """Allocates places as the native builder does, so that equal trees give equal bytes."""

    def __init__(self) -> None:
        self.end = BLOCK_SIZE
        self._tails: list[deque[int]] = [deque() for _ in range(_SLOTS)]
        self._filled = 0  # bit k: there are tails of k slots

    def _note_tail(self, offset: int) -> None:
        """Record that the block that contains `offset` is free from there to its end."""
        used = offset % BLOCK_SIZE
        if used:
            slots = (BLOCK_SIZE - used) // SLOT_SIZE
            self._tails[slots].append(offset - used)
            self._filled |= 1 << slots

    def _take(self, size: int) -> int:
        """Take a place for `size` bytes in a block's free tail; 0: none is large enough."""
        if size >= BLOCK_SIZE:
            return 0
        need = (size + SLOT_SIZE - 1) // SLOT_SIZE
        fitting = self._filled >> need
        if not fitting:
            return 0
        slots = need + (fitting & -fitting).bit_length() - 1
        if slots >= _SLOTS:
            return 0
        tails = self._tails[slots]
        block = tails.popleft()
        if not tails:
            self._filled &= ~(1 << slots)
        offset = block + BLOCK_SIZE - SLOT_SIZE * slots
        self._note_tail(offset + SLOT_SIZE * need)
        return offset

    def place_record(self, size: int) -> int:
        """Place a regular file: inode, xattrs and chunk addresses, `size` bytes together."""
        offset = self._take(size) if self._filled else 0
        if not offset:
            offset = self.end
            self.end = (offset + size + SLOT_SIZE - 1) & -SLOT_SIZE
        return offset

    def place_special(self, size: int) -> int:
        """Place a device, FIFO or socket, never in a free tail."""
        offset = self.end
        self.end = (offset + size + SLOT_SIZE - 1) & -SLOT_SIZE
        return offset

    def place_with_data(self, inode_size: int, data_size: int) -> tuple[int, int, int]:
        """Place a directory or symlink.

        Args:
            inode_size: bytes of inode and xattrs.
            data_size: bytes of its data.
        Returns:
            Offset of the inode, offset of its whole blocks of data, data layout. For FLAT_INLINE without
            whole blocks, the second is the end of the allocation, as in native images.
        """
        tail = data_size % BLOCK_SIZE
        if tail and inode_size + tail <= BLOCK_SIZE:
            layout = LAYOUT_FLAT_INLINE
            offset = self._take(inode_size + tail)
            if not offset:
                if BLOCK_SIZE - self.end % BLOCK_SIZE < inode_size + tail:
                    self._start_block()
                offset = self.end
                self.end += inode_size + tail
            if data_size != tail:
                self._start_block()
            data = self.end
            self.end += data_size - tail
        else:
            layout = LAYOUT_FLAT_PLAIN
            offset = self._take(inode_size)
            if not offset:
                offset = self.end
                self.end += inode_size
            self._start_block()
            data = self.end
            self.end += (data_size + BLOCK_SIZE - 1) & -BLOCK_SIZE
        self.end = (self.end + SLOT_SIZE - 1) & -SLOT_SIZE
        return offset, data, layout

    def _start_block(self) -> None:
        self._note_tail(self.end)
        self.end = (self.end + BLOCK_SIZE - 1) & -BLOCK_SIZE
