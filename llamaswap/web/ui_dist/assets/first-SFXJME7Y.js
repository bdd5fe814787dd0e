import{a}from"./chunk-LBMX6LQG.js";import"./chunk-CTJBCLR4.js";import"./chunk-YD2ZDRBC.js";import"./chunk-X3VPJ676.js";import"./chunk-SQE76S5B.js";export{a as FirstSteps};
