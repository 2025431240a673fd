/* Runs one static Linux program on a bare emulated machine: loads it, and answers the system calls that a
 * Rust test binary makes. Threads take turns, and switch only where they wait or yield. There is one
 * address space, all of it writable, and no protection: this serves tests, in an emulator, and nothing else.
 *
 * Memory, identity mapped: this file from 1 MiB; the program where it wants to be, from 2 MiB, with its
 * break after it; its stack below 256 MiB; anonymous mappings to 768 MiB; the program's file after that. */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

enum {
    BASE = 0x200000,
    STACK_BYTES = 8 << 20,
    STACK_END = 0x10000000,
    MAPS = 0x10000000,
    MAPS_END = 0x30000000,
    PROGRAM = 0x30000000,
    PAGE = 4096,
    THREADS = 32,
    KERNEL_STACK = 8192,
};

enum { EAGAIN = 11, ENOMEM = 12, ENODEV = 19, EINVAL = 22, ENOTTY = 25, ENOSYS = 38, ENOENT = 2, ETIMEDOUT = 110 };

/* What system calls push, lowest address first. */
struct Frame {
    u64 r15, r14, r13, r12, flags, r10, r9, r8, rbp, rdi, rsi, rdx, rip, rbx, rax, rsp;
};

enum State { FREE, READY, WAITING };

struct Thread {
    enum State state;
    u64 kernel_rsp, fs;
    u32 *futex, *clear_on_exit;
    int has_timeout;
    i64 woken_with;
    u8 registers[4096] __attribute__((aligned(64)));
    u8 stack[KERNEL_STACK] __attribute__((aligned(16)));
};

static struct Thread threads[THREADS];
static struct Thread *current = threads;
u64 kernel_stack_top, program_rsp;
static u8 page_used[(MAPS_END - MAPS) / PAGE];
static u64 break_start, break_now;

__asm__(
    ".section .text.start, \"ax\"\n"
    ".global start\n"
    "start: jmp run\n"
    ".text\n"
    ".global on_syscall_entry, resume, swap_stacks, exception_stubs\n"
    "on_syscall_entry:\n"
    "  mov %rsp, program_rsp(%rip)\n"
    "  mov kernel_stack_top(%rip), %rsp\n"
    "  push program_rsp(%rip)\n"
    "  push %rax; push %rbx; push %rcx; push %rdx; push %rsi; push %rdi; push %rbp; push %r8; push %r9\n"
    "  push %r10; push %r11; push %r12; push %r13; push %r14; push %r15\n"
    "  cld\n"
    "  mov %rsp, %rdi\n"
    "  call on_syscall\n"
    "resume:\n"
    "  pop %r15; pop %r14; pop %r13; pop %r12; pop %r11; pop %r10; pop %r9; pop %r8; pop %rbp; pop %rdi\n"
    "  pop %rsi; pop %rdx; pop %rcx; pop %rbx; pop %rax\n"
    "  push %r11; popfq\n"
    "  mov (%rsp), %rsp\n"
    "  jmp *%rcx\n"
    "swap_stacks:\n" /* rdi: where to keep this stack; rsi: the other's */
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "  ret\n"
    /* Sixteen bytes each: the number, then on to one handler. */
    "  .balign 16\n"
    "exception_stubs:\n"
    "  .set vector, 0\n"
    "  .rept 32\n"
    "  .balign 16\n"
    "  mov $vector, %edi\n"
    "  jmp exception\n"
    "  .set vector, vector + 1\n"
    "  .endr\n"
    "exception:\n"
    "  mov %rsp, %rsi\n"
    "  and $-16, %rsp\n"
    "  call on_exception\n");

extern u8 on_syscall_entry[], resume[], exception_stubs[];
void swap_stacks(u64 *keep, u64 other);

static void out(u32 port, u8 byte) { __asm__ volatile("outb %b0, %w1" : : "a"(byte), "d"(port)); }

static void print(const char *text) {
    while (*text) out(0xe9, *text++);
}

static void print_number(u64 value, u32 base) {
    char digits[24];
    int at = 23;
    digits[at] = 0;
    do digits[--at] = "0123456789abcdef"[value % base];
    while (value /= base);
    print(digits + at);
}

static void end(u64 code) {
    print("TESTS ENDED WITH ");
    print_number(code, 10);
    print("\n");
    for (const char *word = "Shutdown"; *word; word++) out(0x8900, *word);
    for (;;) __asm__ volatile("cli; hlt");
}

static void fail(const char *what, u64 value) {
    print("loader: ");
    print(what);
    print(" ");
    print_number(value, 16);
    print("\n");
    end(255);
}

void on_exception(u64 vector, u64 *stack) {
    print("exception ");
    print_number(vector, 10);
    int has_code = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    print(", address ");
    print_number(address, 16);
    print("\n");
    fail("it came at", stack[has_code]);
}

static void set_msr(u32 index, u64 value) {
    __asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)));
}

static u64 nanoseconds(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return ((u64)high << 32 | low) * 5; /* 200 million instructions a second, as bochsrc says */
}

static void zero(u64 at, u64 len) {
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(len) : "a"(0) : "memory");
}

static void copy(u64 to, u64 from, u64 len) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
}

void *memset(void *at, int value, u64 len) {
    void *to = at;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(len) : "a"(value) : "memory");
    return at;
}

static void save(u8 *area) { __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(0xe7), "d"(0) : "memory"); }

static void switch_to(struct Thread *next) {
    struct Thread *from = current;
    if (next == from) return;
    save(from->registers);
    current = next;
    kernel_stack_top = (u64)(next->stack + KERNEL_STACK);
    set_msr(0xc0000100, next->fs);
    __asm__ volatile("xrstor64 (%0)" : : "r"(next->registers), "a"(0xe7), "d"(0) : "memory");
    swap_stacks(&from->kernel_rsp, next->kernel_rsp);
}

/* Gives the turn to the next thread that can run; a wait with a limit ends when nobody else can. */
static void give_turn(void) {
    u64 first = current - threads + 1;
    for (u64 i = 0; i < THREADS; i++) {
        struct Thread *next = &threads[(first + i) % THREADS];
        if (next->state == READY) return switch_to(next);
    }
    for (u64 i = 0; i < THREADS; i++) {
        struct Thread *next = &threads[(first + i) % THREADS];
        if (next->state == WAITING && next->has_timeout) {
            next->state = READY;
            next->woken_with = -ETIMEDOUT;
            return switch_to(next);
        }
    }
    fail("every thread waits; the last at", (u64)current->futex);
}

static i64 wake(u32 *futex, u64 most) {
    u64 woken = 0;
    for (struct Thread *thread = threads; thread < threads + THREADS && woken < most; thread++) {
        if (thread->state == WAITING && thread->futex == futex) {
            thread->state = READY;
            thread->woken_with = 0;
            woken++;
        }
    }
    return woken;
}

static i64 futex(u32 *address, u32 operation, u32 value, u64 timeout) {
    switch (operation & 0x7f) {
    case 0: /* wait */
    case 9: /* wait for any of some bits */
        if (*address != value) return -EAGAIN;
        current->state = WAITING;
        current->futex = address;
        current->has_timeout = timeout != 0;
        give_turn();
        return current->woken_with;
    case 1: /* wake */
    case 10:
        return wake(address, value);
    default:
        return -ENOSYS;
    }
}

static i64 clone(struct Frame *frame) {
    u64 flags = frame->rdi;
    struct Thread *child = threads;
    while (child < threads + THREADS && child->state != FREE) child++;
    if (child == threads + THREADS || !(flags & 0x10000)) return -EAGAIN;
    u64 id = child - threads + 1;
    struct Frame *own = (struct Frame *)(child->stack + KERNEL_STACK) - 1;
    *own = *frame;
    own->rax = 0;
    own->rsp = frame->rsi;
    /* What swap_stacks takes off: six registers, and where to go. */
    u64 *top = (u64 *)own - 7;
    for (int i = 0; i < 6; i++) top[i] = 0;
    top[6] = (u64)resume;
    child->kernel_rsp = (u64)top;
    child->fs = flags & 0x80000 ? frame->r8 : current->fs;
    child->clear_on_exit = flags & 0x200000 ? (u32 *)frame->r10 : 0;
    if (flags & 0x100000) *(u32 *)frame->rdx = id;
    save(child->registers);
    child->state = READY;
    return id;
}

static void end_thread(void) {
    if (current->clear_on_exit) {
        *current->clear_on_exit = 0;
        wake(current->clear_on_exit, 1);
    }
    current->state = FREE;
    give_turn();
}

static i64 map(u64 at, u64 len, u64 flags, i64 file) {
    u64 pages = (len + PAGE - 1) / PAGE;
    if (file >= 0) return -ENODEV;
    if (!pages) return -EINVAL;
    if (!(flags & 0x10)) { /* no fixed place: the first gap */
        u64 run = 0, page = 0;
        while (page < sizeof page_used && run < pages) run = page_used[page++] ? 0 : run + 1;
        if (run < pages) return -ENOMEM;
        at = MAPS + (page - pages) * PAGE;
    } else if (at < MAPS || at + len > MAPS_END) {
        return -ENOMEM;
    }
    memset(page_used + (at - MAPS) / PAGE, 1, pages);
    zero(at, pages * PAGE);
    return at;
}

static i64 unmap(u64 at, u64 len) {
    if (at % PAGE || at < MAPS || at + len > MAPS_END) return -EINVAL;
    memset(page_used + (at - MAPS) / PAGE, 0, (len + PAGE - 1) / PAGE);
    return 0;
}

static i64 move_break(u64 to) {
    if (to >= break_start && to <= STACK_END - STACK_BYTES) {
        if (to > break_now) zero(break_now, to - break_now);
        break_now = to;
    }
    return break_now;
}

static i64 write(u64 file, const u8 *bytes, u64 len) {
    if (file != 1 && file != 2) return -EINVAL;
    for (u64 i = 0; i < len; i++) out(0xe9, bytes[i]);
    return len;
}

static i64 write_parts(u64 file, const u64 *parts, u64 count) {
    i64 total = 0;
    for (u64 i = 0; i < count; i++) total += write(file, (const u8 *)parts[2 * i], parts[2 * i + 1]);
    return total;
}

/* Numbers that look random, the same in every run. */
static i64 random_bytes(u8 *to, u64 len) {
    static u64 state = 0x9e3779b97f4a7c15;
    for (u64 i = 0; i < len; i++) {
        state = state * 6364136223846793005 + 1442695040888963407;
        to[i] = state >> 56;
    }
    return len;
}

static i64 answer(struct Frame *f) {
    switch (f->rax) {
    case 0: return 0; /* read: the end */
    case 1: return write(f->rdi, (const u8 *)f->rsi, f->rdx);
    case 20: return write_parts(f->rdi, (const u64 *)f->rsi, f->rdx);
    case 2: case 4: case 21: case 79: case 87: case 89: case 257: case 262: case 267: case 332:
        return -ENOENT; /* files: there are none */
    case 3: return 0; /* close */
    case 5: return -EINVAL; /* fstat */
    case 7: case 72: return 0; /* poll, fcntl */
    case 9: return map(f->rdi, f->rsi, f->r10, (int)f->r8);
    case 10: case 28: return 0; /* mprotect, madvise */
    case 11: return unmap(f->rdi, f->rsi);
    case 12: return move_break(f->rdi);
    case 13: /* rt_sigaction: signals never come */
        if (f->rdx) zero(f->rdx, 32);
        return 0;
    case 14: /* rt_sigprocmask */
        if (f->rdx) zero(f->rdx, f->r10);
        return 0;
    case 16: return -ENOTTY; /* ioctl */
    case 24: give_turn(); return 0; /* sched_yield */
    case 25: return -ENOMEM; /* mremap: copy instead */
    case 35: case 230: give_turn(); return 0; /* sleep */
    case 39: return 1; /* getpid */
    case 56: return clone(f);
    case 60: end_thread(); return 0;
    case 63: { /* uname */
        zero(f->rdi, 390);
        copy(f->rdi, (u64)"Linux", 5);
        copy(f->rdi + 130, (u64)"6.1.0", 5);
        return 0;
    }
    case 131: /* sigaltstack: none */
        if (f->rsi) {
            zero(f->rsi, 24);
            *(u32 *)(f->rsi + 8) = 2;
        }
        return 0;
    case 157: case 203: case 273: return 0; /* prctl, sched_setaffinity, set_robust_list */
    case 158: /* arch_prctl */
        if (f->rdi != 0x1002) return -EINVAL;
        current->fs = f->rsi;
        set_msr(0xc0000100, f->rsi);
        return 0;
    case 186: return current - threads + 1; /* gettid */
    case 202: return futex((u32 *)f->rdi, f->rsi, f->rdx, f->r10);
    case 204: /* sched_getaffinity: one processor */
        zero(f->rdx, f->rsi);
        *(u8 *)f->rdx = 1;
        return 8;
    case 218:
        current->clear_on_exit = (u32 *)f->rdi;
        return current - threads + 1; /* set_tid_address */
    case 228: { /* clock_gettime */
        u64 now = nanoseconds();
        ((u64 *)f->rsi)[0] = now / 1000000000;
        ((u64 *)f->rsi)[1] = now % 1000000000;
        return 0;
    }
    case 231: end(f->rdi); return 0; /* exit_group */
    case 302: /* prlimit64 */
        if (f->r10) {
            ((u64 *)f->r10)[0] = STACK_BYTES;
            ((u64 *)f->r10)[1] = ~0UL;
        }
        return 0;
    case 318: return random_bytes((u8 *)f->rdi, f->rsi);
    case 334: case 435: return -ENOSYS; /* rseq, clone3: glibc does without */
    case 200: case 234: /* tkill, tgkill: a program that aborts */
        end(134);
        return 0;
    default:
        print("loader: no system call ");
        print_number(f->rax, 10);
        print("\n");
        return -ENOSYS;
    }
}

void on_syscall(struct Frame *frame) { frame->rax = answer(frame); }

static void catch_exceptions(void) {
    static u64 gates[64] __attribute__((aligned(16)));
    static struct {
        unsigned short limit;
        u64 base;
    } __attribute__((packed)) pointer = {sizeof gates - 1, 0};
    for (u64 vector = 0; vector < 32; vector++) {
        u64 handler = (u64)exception_stubs + 16 * vector;
        gates[2 * vector] = (handler & 0xffff) | 24 << 16 | 0x8e00UL << 32 | (handler & 0xffff0000) << 32;
        gates[2 * vector + 1] = handler >> 32;
    }
    pointer.base = (u64)gates;
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

struct Header {
    u8 magic[16];
    unsigned short type, machine;
    u32 version;
    u64 entry, parts_at, sections_at;
    u32 flags;
    unsigned short header_len, part_len, parts;
};

struct Part {
    u32 kind, flags;
    u64 at, address, physical, file_len, memory_len, align;
};

/* The words of the command line, set where the image is made: zero bytes between, two at the end. */
extern const char command_line[];

void run(void) {
    extern u8 bss_start[], bss_end[];
    zero((u64)bss_start, bss_end - bss_start);
    catch_exceptions();
    set_msr(0xc0000081, 24UL << 32); /* STAR: code 24, data 32 */
    set_msr(0xc0000082, (u64)on_syscall_entry);
    set_msr(0xc0000084, 0x700); /* SFMASK: no traps, interrupts or backward strings within calls */
    current->state = READY;
    kernel_stack_top = (u64)(current->stack + KERNEL_STACK);

    const struct Header *header = (const struct Header *)PROGRAM;
    if (*(const u32 *)header->magic != 0x464c457f) fail("no program; its first bytes are", *(const u32 *)header->magic);
    u64 base = header->type == 3 ? BASE : 0;
    const struct Part *part = (const struct Part *)(PROGRAM + header->parts_at);
    u64 tables = 0;
    for (int i = 0; i < header->parts; i++, part++) {
        if (part->kind != 1) continue;
        u64 at = base + part->address;
        if (at < BASE || at + part->memory_len > STACK_END / 2) fail("a segment lies at", at);
        copy(at, PROGRAM + part->at, part->file_len);
        zero(at + part->file_len, part->memory_len - part->file_len);
        if (part->at <= header->parts_at && header->parts_at < part->at + part->file_len)
            tables = at + header->parts_at - part->at;
        if (at + part->memory_len > break_start) break_start = at + part->memory_len;
    }
    break_start = break_now = (break_start + PAGE - 1) & ~(u64)(PAGE - 1);

    /* As Linux hands it over: argument count, arguments, environment, auxiliary vector. */
    static const char *const environment[] = {"RAYON_NUM_THREADS=1", "MALLOC_ARENA_MAX=1", "RUST_BACKTRACE=0"};
    u64 *top = (u64 *)(STACK_END - PAGE), *at = top + 1;
    top[0] = 0;
    for (const char *word = command_line; *word; top[0]++) {
        *at++ = (u64)word;
        while (*word++) {}
    }
    *at++ = 0;
    for (int i = 0; i < 3; i++) *at++ = (u64)environment[i];
    *at++ = 0;
    u64 pairs[][2] = {
        {3, tables}, {4, header->part_len}, {5, header->parts}, {6, PAGE}, {7, 0}, {8, 0}, {9, base + header->entry},
        {11, 0}, {12, 0}, {13, 0}, {14, 0}, {16, 0}, {17, 100}, {23, 0}, {25, STACK_END - 64}, {31, (u64)command_line},
        {51, 8192}, {0, 0},
    };
    for (u64 i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        *at++ = pairs[i][0];
        *at++ = pairs[i][1];
    }
    random_bytes((u8 *)STACK_END - 64, 16);
    __asm__ volatile("mov %0, %%rsp; xor %%edx, %%edx; xor %%ebp, %%ebp; jmp *%1"
                     : : "a"(top), "c"(base + header->entry) : "rdx", "memory");
    __builtin_unreachable();
}
