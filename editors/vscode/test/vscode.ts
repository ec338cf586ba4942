// Stands for VS Code where only pure functions are called.
export {};
