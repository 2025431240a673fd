# A 64 KiB ROM in the place of a BIOS: from the reset vector into 64-bit mode with AVX-512 on, and on to
# `start` of loader.c, which the emulator has put at 1 MiB. No device is touched.
#
# The program's image stands at PROGRAM. Bochs gives memory to a guest in blocks in the order in which
# they are first touched, and fills an image as if they were neighbours: so touch them first, in order.

        .set    PROGRAM, 0x30000000
        .set    PROGRAM_PAGES, 16384
        .set    TABLES, 0x1f0000          # page tables, above the loader
        .set    STACK, 0x1f0000

        .section .text
        .code16
rom:
entry:
        cli
        lgdtl   %cs:(gdt_pointer - rom)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $8, $(0xf0000 + protected - rom)

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $PROGRAM, %esi
        movl    $PROGRAM_PAGES, %ecx
touch:  movl    (%esi), %eax
        addl    $0x1000, %esi
        loop    touch

        # The first 4 GiB as they are, in pages of 1 GiB.
        movl    $TABLES, %edi
        xorl    %eax, %eax
        movl    $0x800, %ecx
        rep stosl
        movl    $(TABLES + 0x1000 + 3), TABLES
        movl    $0x00000083, TABLES + 0x1000
        movl    $0x40000083, TABLES + 0x1008
        movl    $0x80000083, TABLES + 0x1010
        movl    $0xc0000083, TABLES + 0x1018
        movl    $TABLES, %eax
        movl    %eax, %cr3
        movl    $0x40620, %eax            # PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx         # EFER: system calls, long mode
        movl    $0x101, %eax
        xorl    %edx, %edx
        wrmsr
        movl    $0x80000023, %eax         # paging, numeric errors as exceptions, no emulation, protection
        movl    %eax, %cr0
        ljmpl   $24, $(0xf0000 + long_mode - rom)

        .code64
long_mode:
        movl    $STACK, %esp
        xorl    %ecx, %ecx
        movl    $0xe7, %eax               # x87, SSE, AVX, mask registers, both upper halves of AVX-512
        xorl    %edx, %edx
        xsetbv
        fninit
        movl    $0x100000, %eax
        jmp     *%rax

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff        # 8: 32-bit code; accessed already, since a ROM cannot be marked
        .quad   0x00cf93000000ffff        # 16: data
        .quad   0x00af9b000000ffff        # 24: 64-bit code
        .quad   0x00cf93000000ffff        # 32: data, where `syscall` looks for it
gdt_pointer:
        .word   . - gdt - 1
        .long   0xf0000 + gdt - rom

        .org    0xfff0
        .code16
        ljmp    $0xf000, $(entry - rom)
        .org    0x10000
